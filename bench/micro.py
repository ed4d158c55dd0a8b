"""The kernel sums by every method, through pytest-benchmark: verified, timed, tabulated, plotted."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from bench import machine, options, report
from ddeq_fast.utils.optional import require


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("micro", __doc__)
    parser.add_argument("--filter", default="", help="pytest -k expression on case and method, such as 'd3 and dense'")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--max-time", type=float, default=1.0, help="seconds a case and method (default: %(default)s)")
    options.add_json(parser)
    options.add_plot(parser, "time and memory against the number of points")
    return parser


def main(argv: list[str]) -> int:
    """Run the cases; prints a Markdown table. Returns 1 if a method's results were wrong."""
    pytest = require("pytest", "tests")
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw.json")
        arguments = ["-q", "--no-header", "-p", "no:cacheprovider", "-k", args.filter, f"--bench-device={args.device}"]
        arguments += ["--benchmark-enable", "--benchmark-quiet", "--benchmark-min-rounds=3"]
        arguments += [f"--benchmark-max-time={args.max_time}", f"--benchmark-json={raw}"]
        status = pytest.main([*arguments, str(Path(__file__).with_name("bench_micro.py"))])
        if not raw.exists() or not raw.stat().st_size:
            print("bench micro: nothing was measured", file=sys.stderr)
            return 1
        measured = json.loads(raw.read_text(encoding="utf-8"))["benchmarks"]
    rows = [{**entry["extra_info"], "seconds": entry["stats"]["median"]} for entry in measured]
    described = machine.describe()
    print(f"\n{machine.line(described)}\n\n{report.table(rows)}")
    if args.json:
        report.write_json(args.json, {"machine": described, "rows": rows})
    if args.plot and not report.plot(rows, args.plot):
        print("bench micro: no family with several sizes to plot", file=sys.stderr)
    return int(status)
