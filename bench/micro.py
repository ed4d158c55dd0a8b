"""The kernel sums by every method, through pytest-benchmark: verified, timed, tabulated, plotted."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from bench import machine, report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench micro", description=__doc__.splitlines()[0])
    parser.add_argument("--filter", default="", help="pytest -k expression on case and method, such as 'd3 and dense'")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write machine and results to this file")
    parser.add_argument("--plot", type=Path, help="draw time and memory against the number of points to this PNG")
    parser.add_argument("--max-time", type=float, default=1.0, help="seconds a case and method (default: %(default)s)")
    return parser


def main(argv: list[str]) -> int:
    """Run the cases; prints a Markdown table. Returns 1 if a method's results were wrong."""
    import pytest

    args = _parser().parse_args(argv)
    folder = Path(__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw.json")
        options = [f"--bench-device={args.device}", f"--benchmark-json={raw}", f"--benchmark-max-time={args.max_time}"]
        options += ["--benchmark-enable", "--benchmark-quiet", "--benchmark-min-rounds=3", "-p", "no:cacheprovider"]
        status = pytest.main(["-q", "--no-header", "-k", args.filter, *options, str(folder / "bench_micro.py")])
        if not raw.exists() or not raw.stat().st_size:
            print("bench micro: nothing was measured", file=sys.stderr)
            return 1
        measured = json.loads(raw.read_text(encoding="utf-8"))["benchmarks"]
    rows = [{**entry["extra_info"], "seconds": entry["stats"]["median"]} for entry in measured]
    described = machine.describe()
    print("\n" + ", ".join(f"{key} {value}" for key, value in described.items()) + "\n")
    print(report.table(rows))
    if args.json:
        args.json.write_text(json.dumps({"machine": described, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if args.plot and not report.plot(rows, args.plot):
        print("bench micro: no family with several sizes to plot", file=sys.stderr)
    return int(status)
