"""Sums of large clouds to a tolerance, and their Chamfer distances: time, memory and error.

The sums are those of two normal clouds of opposite charge. Errors are norm-wise, |f - f*| / |f*|, against sums in
float64 at 1,000 targets drawn at random. The time of exact sums is that of fewer points, grown by the number of pairs.
"""

from __future__ import annotations

import argparse
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from bench import machine, options
from bench.large import errors, time_and_memory
from bench.measure import seconds
from bench.report import write_json
from ddeq_fast import potential_and_field
from ddeq_fast.distances.chamfer import chamfer
from ddeq_fast.utils.units import duration

CHECKED = 1000
# Points whose exact sums are timed, at most.
EXACT = 64_000
# Points of either cloud in a first sum, untimed: enough for trees.
WARM = 100_000
# Between the centres of the clouds, in their standard deviations.
APART = 4.0


class Goal(NamedTuple):
    """n points in d dimensions, by trees to a tolerance, or along 64 directions if there is none."""

    d: int
    n: int
    tolerance: float | None = None

    def __str__(self) -> str:
        return f"tree, {self.tolerance:.0e}" if self.tolerance else "sliced"


GOALS = (
    Goal(2, 1_000_000, 1e-5),
    Goal(2, 10_000_000, 1e-5),
    Goal(3, 1_000_000, 1e-3),
    Goal(2, 100_000),
    Goal(3, 100_000),
)
CHAMFER = (30_000, 1_000_000)


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("tolerance", __doc__)
    options.add_largest(parser)
    options.add_json(parser)
    return parser


def main(argv: list[str]) -> int:
    """Measure, print two tables, write what was asked for."""
    args = _parser().parse_args(argv)
    described = machine.describe()
    print(machine.line(described) + "\n")
    print("potential and field of Riesz(1), two normal clouds of opposite charge, at their own n points, float32\n")
    print("| d | n | by | time | exact sums would take | memory beyond the clouds | error of u | error of f |")
    print("|---|---|---|---|---|---|---|---|")
    rows, nearest = [], []
    for goal in GOALS:
        if goal.n <= args.largest:
            rows.append(sums(goal))
            print(_line(rows[-1]), flush=True)
    print("\nChamfer distance of two normal clouds in three dimensions, float32\n")
    print("| n | time | exact value's relative difference |\n|---|---|---|")
    for n in CHAMFER:
        if n <= args.largest:
            nearest.append(distance(n))
            print(f"| {n:,} | {duration(nearest[-1]['seconds'], 3)} | {nearest[-1]['error']:.1e} |", flush=True)
    if args.json:
        write_json(args.json, {"machine": described, "sums": rows, "chamfer": nearest})
    return 0


def charged(d: int, n: int) -> tuple[Tensor, Tensor]:
    """Points (n, d) of two normal clouds, half each, and charges (n,), of mean one and minus one."""
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(n, d, generator=generator), 0.5 + torch.rand(n, generator=generator)
    x[n // 2 :, 0] += APART
    v[n // 2 :] *= -1
    return x, v


def sums(goal: Goal) -> dict:
    """Time, memory and errors of one goal, once all is compiled."""
    x, v = charged(goal.d, goal.n)
    by: dict = {"tolerance": goal.tolerance} if goal.tolerance else {"backend": "sliced"}
    found: list[Tensor] = []

    def run() -> None:
        found[:] = potential_and_field(x, x, charges=v, **by)

    few = slice(goal.n // 2 - WARM, goal.n // 2 + WARM)  # compiled, if it needs to be: checks by exact sums, too
    potential_and_field(x[few], x[few], charges=v[few], **by)
    cost = time_and_memory(run)
    at = torch.randperm(goal.n, generator=torch.Generator().manual_seed(1))[:CHECKED]
    u, f = errors(found, x, v, at, backend="auto")  # a thousand targets are many for blocks
    exact = exact_seconds(goal.d, goal.n)
    return {"d": goal.d, "n": goal.n, "by": str(goal), **cost, "exact_seconds": exact, "error_u": u, "error_f": f}


@functools.cache
def exact_seconds(d: int, n: int) -> float:
    """What exact sums of n points take, from those of `EXACT` or fewer."""
    fewer = min(n, EXACT)
    x, v = charged(d, fewer)
    return seconds(lambda: potential_and_field(x, x, charges=v), "cpu") * (n / fewer) ** 2


def distance(n: int) -> dict:
    """Time of the Chamfer distance of two clouds of n points, and its difference from blocks of distances.

    Of large clouds the mean distance of sampled points is compared instead.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, generator=generator), torch.randn(n, 3, generator=generator) + 0.5
    taken = seconds(lambda: chamfer(x, y), "cpu")
    few = x if n <= 30_000 else x[:CHECKED]
    value, exact = chamfer(few, y), chamfer(few, y, backend="dense")
    return {"n": n, "seconds": taken, "error": float((value - exact).abs() / exact)}


def _line(row: dict) -> str:
    cells = [str(row["d"]), f"{row['n']:,}", row["by"], duration(row["seconds"], 3), duration(row["exact_seconds"], 3)]
    errors = [f"{row[name]:.1e}" for name in ("error_u", "error_f")]
    return "| " + " | ".join([*cells, f"{row['peak_bytes'] / 2**20:.0f} MiB", *errors]) + " |"
