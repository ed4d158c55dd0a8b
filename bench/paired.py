"""Methods of the kernel sums by turns in one process: ratios, which a busy machine distorts least."""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from bench import machine, options, report
from bench.cases import CASES, METHODS, refusal
from bench.measure import prepare
from ddeq_fast.utils.validation import check_choice


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("paired", __doc__)
    names = [case.name for case in CASES if "cpu" in case.devices]
    parser.add_argument("cases", nargs="+", metavar="CASE", help=f"some of {', '.join(names)}")
    text = "the first one's times are divided by the others' (default: %(default)s)"
    parser.add_argument("--methods", nargs="+", default=["dense", "compiled"], metavar="NAME", help=text)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each method (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options.add_json(parser)
    return parser


def main(argv: list[str]) -> int:
    """Verify the methods against float64, then time them by turns; prints a line for each case and method."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    known = {case.name: case for case in CASES if "cpu" in case.devices}
    for method in args.methods:
        check_choice("methods", method, METHODS)
    rows = []
    described = machine.describe()
    print(f"{machine.line(described)}\n\n| case | method | ratio | of each round | CPU time ratio | error |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in args.cases:
        case = known[check_choice("cases", name, known)]
        able = [method for method in args.methods if refusal(case, method, "cpu") is None]
        runs, errors = zip(*(prepare(case, method, "cpu") for method in able), strict=True)
        times = [[_seconds(run) for run in runs] for _ in range(args.rounds)]
        for i, method in enumerate(able):
            wall, busy = ([turn[0][k] / turn[i][k] for turn in times] for k in range(2))
            row = {"case": name, "method": method, "ratios": wall, "cpu_ratios": busy, "error": errors[i]}
            rows.append(row | {"seconds": [turn[i][0] for turn in times]})
            each = ", ".join(f"{ratio:.1f}" for ratio in wall)
            middle, of_cpu = statistics.median(wall), statistics.median(busy)
            print(f"| {name} | {method} | {middle:.1f} | {each} | {of_cpu:.1f} | {errors[i]:.1e} |", flush=True)
    if args.json:
        report.write_json(args.json, {"machine": described, "rows": rows})
    return 0


def _seconds(run) -> tuple[float, float]:
    """(time that passes, time of the CPU) of one call after another that warms up."""
    run()
    wall, busy = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - busy
