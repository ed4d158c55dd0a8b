"""Everything that needs a GPU, in one command under 8 minutes: tests, micro cases, the layer, memory, CUDA graphs.

Needs torch, triton and numpy; pytest for the tests, pykeops for its column. What is missing or out of time is
named as skipped. Writes one JSON file and one Markdown table under bench/results/, with the GPU's name.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import sys
import time
from pathlib import Path

import torch

from bench import layer, machine, report, shards
from bench.cases import CASES, METHODS, Case, refusal
from bench.measure import Wrong, graph_seconds, peak_memory, prepare, seconds

ROOT = Path(__file__).parent.parent


class Session:
    """Results so far, what was skipped and why, and the time that is left."""

    def __init__(self, minutes: float, device: str):
        self.device, self.end = device, time.monotonic() + 60 * minutes
        self.rows: list[dict] = []
        self.lines: dict[str, str] = {}
        self.skipped: list[str] = []
        self.failed: list[str] = []

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def section(self, name: str, work, least: float) -> None:
        """Run a part, unless fewer than `least` seconds are left; what goes wrong in it does not stop the others."""
        if self.left() < least:
            self.skipped.append(f"{name}: {least:.0f} s needed, {max(self.left(), 0):.0f} left")
            return
        started = time.monotonic()
        print(f"== {name}", flush=True)
        try:
            work(self)
        except Exception as error:  # reported, and the command fails in the end
            self.failed.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        print(f"   {time.monotonic() - started:.0f} s", flush=True)


def micro(session: Session) -> None:
    """Every case by every method, smallest first."""
    for case in CASES:
        for method in METHODS:
            name = f"{case.name} by {method}"
            reason = refusal(case, method, session.device)
            if reason is None and session.left() < 60:
                reason = "out of time"
            if reason is not None:
                if session.device in case.devices:
                    session.skipped.append(f"{name}: {reason}")
                continue
            try:
                run, error = prepare(case, method, session.device)
            except Wrong as wrong:
                session.failed.append(str(wrong))
                continue
            except Exception as failure:  # out of memory, no compiler for KeOps...
                session.skipped.append(f"{name}: {type(failure).__name__}: {str(failure).splitlines()[0][:160]}")
                continue
            row = {"case": case.name, "family": case.family, "n": case.n, "pairs": case.pairs, "method": method}
            row |= {"error": error, "peak_bytes": peak_memory(run, session.device)}
            session.rows.append(row | {"seconds": seconds(run, session.device, 0.5)})
            print(f"   {name}: {report.duration(session.rows[-1]['seconds'])}", flush=True)


def graph(session: Session) -> None:
    """One MMD value with both gradients for the classifier's latent clouds, inside a CUDA graph."""
    case = next(case for case in CASES if case.op == "mmd")
    for method in ("triton", "dense"):
        tensors = case.inputs(session.device)
        taken = graph_seconds(METHODS[method](case), tensors)
        session.lines[f"MMD and both gradients, B=64, N=10, d=128, in a graph, {method}"] = report.duration(taken)


def memory(session: Session) -> None:
    """Peak memory of exact sums against their inputs: linear in n."""
    for n in (65536, 262144):
        run, _ = prepare(Case("memory", "sums", n, 3), "triton", session.device)
        extra = peak_memory(run, session.device) / 2**20
        session.lines[f"memory of d=3, {n} x {n}, beyond the inputs"] = f"{extra:.1f} MiB"


def whole_layer(session: Session) -> None:
    """The classifier's forward pass, in float32 as one trains, and in float64 to compare results."""
    for dtype in ("float32", "float64"):
        args = layer.parser().parse_args(["--device", session.device, "--dtype", dtype, "--rounds", "3"])
        session.lines[f"layer, {dtype}"] = "\n" + layer.report(layer.measure(args), args)


def tests(session: Session) -> None:
    """The GPU tests, in several processes, for most of their time is that of the compiler."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        session.skipped.append(f"tests: {', '.join(missing)} not installed")
        return
    outcomes, broken = shards.run(ROOT, ["-m", "gpu", "tests"], max(30.0, session.left() - 30))
    session.lines["GPU tests"] = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    session.failed += [f"test {name}" for name in broken]
    if outcomes["not reached"]:
        session.skipped.append(f"{outcomes['not reached']} tests: out of time")


PARTS = {
    "graph": (graph, 20),
    "memory": (memory, 30),
    "micro": (micro, 60),
    "layer": (whole_layer, 90),
    "tests": (tests, 60),
}


def write(session: Session, folder: Path) -> Path:
    """One JSON file and one Markdown file named after the GPU; returns the latter."""
    described = machine.describe()
    slug = "".join(c if c.isalnum() else "-" for c in described["gpu"].lower()).strip("-")
    stem = f"{slug}-{time.strftime('%Y%m%d')}"
    folder.mkdir(parents=True, exist_ok=True)
    outcome = {"machine": described, "rows": session.rows, "lines": session.lines}
    outcome |= {"skipped": session.skipped, "failed": session.failed}
    (folder / f"{stem}.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        print(f"# {described['gpu']}\n")
        print(", ".join(f"{key} {value}" for key, value in described.items()) + "\n")
        print(report.table(session.rows))
        for name, line in session.lines.items():
            print(f"\n**{name}**: {line}")
        for title, entries in (("Skipped", session.skipped), ("Failed", session.failed)):
            if entries:
                print(f"\n## {title}\n")
                print("\n".join(f"* {entry}" for entry in entries))
    path = folder / f"{stem}.md"
    path.write_text(page.getvalue(), encoding="utf-8")
    return path


def main(argv: list[str]) -> int:
    """Run all parts; returns 0, 1 if something failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder (default: bench/results)")
    parser.add_argument("--minutes", type=float, default=7.5, help="time to spend (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench gpu: error: no CUDA GPU (torch.cuda.is_available() is False)", file=sys.stderr)
        return 2
    session = Session(args.minutes, "cuda")
    for name in args.only:
        session.section(name, *PARTS[name])
        path = write(session, args.out)  # after every part: a crash of the next one loses nothing
    print(path.read_text(encoding="utf-8"))
    print(f"written: {path} and {path.with_suffix('.json').name}")
    return 1 if session.failed else 0
