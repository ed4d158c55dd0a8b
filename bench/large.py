"""Large clouds: time, memory and error of exact sums and estimates against the number of points, of one call.

Backends of this package, and geomloss where it is installed: its energy distance, whose gradients are the sums.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench import machine, options
from bench.measure import peak_memory
from bench.report import COLOURS, write_json
from ddeq_fast import Riesz, potential_and_field
from ddeq_fast.sums import backends
from ddeq_fast.utils.drawing import figure, write_png
from ddeq_fast.utils.optional import available, require
from ddeq_fast.utils.units import duration

# Points of each cloud; the last of each list shows what is possible.
SIZES = {
    "dense": (1000, 2000, 4000, 8000),
    "keops": (1000, 2000, 4000, 8000, 20_000),
    "geomloss": (1000, 2000, 4000, 8000, 20_000),
    "compiled": (1000, 2000, 4000, 8000, 20_000, 64_000, 200_000),
    "tree": (1000, 10_000, 50_000, 200_000, 1_000_000),
    "sliced": (1000, 10_000, 100_000, 500_000, 2_000_000),
}
# What pairs cost that are summed outright: growth of the time of the last ones.
LAWS = {
    "compiled": (lambda n: n**2, "n²"),
    "tree": (lambda n: n, "n"),
    "sliced": (lambda n: n * math.log(n), "n log n"),
}
DIMENSION = 3
# Targets that are checked against float64.
CHECKED = 64


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("large", __doc__)
    names = f"some of {', '.join(SIZES)} (default: all)"
    parser.add_argument("--methods", nargs="+", metavar="NAME", choices=SIZES, default=list(SIZES), help=names)
    options.add_largest(parser)
    options.add_json(parser)
    options.add_plot(parser, "time and memory against the number of points")
    return parser


def main(argv: list[str]) -> int:
    """Measure, print a table, write what was asked for."""
    args = _parser().parse_args(argv)
    described = machine.describe()
    print(machine.line(described) + "\n")
    print("potential and field of n points on themselves in three dimensions, float32, Riesz(1)\n")
    print("| backend | n | time | pairs/s | memory beyond the clouds | relative error |\n|---|---|---|---|---|---|")
    rows = []
    for method in args.methods:
        reason = refusal(method)
        if reason is not None:
            print(f"{method} left out: {reason}")
            continue
        for n in SIZES[method]:
            if n <= args.largest:
                rows.append(measure(method, n))
                print(_line(rows[-1]), flush=True)
    for method in dict.fromkeys(row["method"] for row in rows):
        if sum(row["method"] == method for row in rows) > 1:
            print(f"\n{method}: time grows as n^{slope(rows, method):.2f}", end="")
    print()
    if args.json:
        write_json(args.json, {"machine": described, "rows": rows})
    if args.plot:
        plot(rows, args.plot)
    return 0


def refusal(method: str) -> str | None:
    """Why a method does not run here, or None."""
    if method == "geomloss":
        return None if available("geomloss") else "geomloss is not installed"
    probe = torch.empty(1, 1, DIMENSION)
    return backends.get(method).unsupported(probe, probe, Riesz(1.0))


def sums(method: str, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Potential and field of charges v (n,) at x (n, d), there."""
    if method != "geomloss":
        return potential_and_field(x, x, charges=v, backend=method)
    # Half the sum of v_i v_j k(x_i, x_j), beside a cloud of one point without a weight.
    x, v = x.requires_grad_(), v.requires_grad_()
    value = require("geomloss", "geomloss").SamplesLoss("energy")(v, x, torch.zeros(1), x.detach()[:1])
    slope, u = torch.autograd.grad(value, (x, v))
    return u, slope / v.detach()[:, None]


def measure(method: str, n: int) -> dict:
    """Time, memory and error of one method on n points: the best of a second's worth of calls, once compiled."""
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(n, DIMENSION, generator=generator), torch.rand(n, generator=generator)
    results: list[Tensor] = []

    def run():
        results[:] = sums(method, x.detach(), v.detach())

    sums(method, x[:1000].clone(), v[:1000].clone())  # compiled, if it needs to be
    cost = time_and_memory(run)
    return {"method": method, "n": n, **cost, "error": max(errors(results, x, v, torch.arange(min(n, CHECKED))))}


def time_and_memory(run: Callable[[], object]) -> dict:
    """ "seconds", of the best of a second's worth of calls and of several short ones, and "peak_bytes" beyond those
    before, of the first."""
    _trim()
    started = time.perf_counter()
    memory = peak_memory(run, "cpu")
    times = [time.perf_counter() - started]
    while sum(times) < 1.0 or len(times) < (3 if times[0] < 5 else 2 if times[0] < 20 else 1):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return {"seconds": min(times), "peak_bytes": memory}


def errors(found: Sequence[Tensor], x: Tensor, v: Tensor, at: Tensor, backend: str = "dense") -> list[float]:
    """Relative errors, norm-wise, of potential and field of charges v (n,) at the points x (n, d) numbered `at`."""
    exact = potential_and_field(x[at].double(), x.double(), charges=v.double(), backend=backend)
    return [float((part[at].double() - right).norm() / right.norm()) for part, right in zip(found, exact, strict=True)]


def _trim() -> None:
    """Give memory freed by earlier measurements back, so that the next is seen to take it."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _line(row: dict) -> str:
    cells = [row["method"], f"{row['n']:,}", duration(row["seconds"], 3), f"{row['n'] ** 2 / row['seconds']:.2e}"]
    return "| " + " | ".join([*cells, f"{row['peak_bytes'] / 2**20:.0f} MiB", f"{row['error']:.1e}"]) + " |"


def slope(rows: list[dict], method: str) -> float:
    """Exponent of n in the time between a method's two largest clouds."""
    (n, a), (m, b) = sorted((row["n"], row["seconds"]) for row in rows if row["method"] == method)[-2:]
    return math.log(b / a) / math.log(m / n)


def plot(rows: list[dict], path: Path) -> None:
    """Time, memory and error against n, with the slopes they should have, as a PNG."""
    drawing, axes = figure(1, 3, 14, 4.2)
    left, right, last = axes[0]
    for method in dict.fromkeys(row["method"] for row in rows):
        part = [row for row in rows if row["method"] == method]
        colour = COLOURS.get(method, "#56B4E9")
        left.loglog([r["n"] for r in part], [r["seconds"] for r in part], "o-", color=colour, label=method)
        if taken := [(r["n"], r["peak_bytes"] / 2**20) for r in part if r["peak_bytes"]]:
            right.loglog(*zip(*taken, strict=True), "o-", color=colour, label=method)
        last.loglog([r["n"] for r in part], [r["error"] for r in part], "o-", color=colour, label=method)
    for method, (law, text) in LAWS.items():
        _guide(left, [(r["n"], r["seconds"]) for r in rows if r["method"] == method], law, text)
        _guide(right, [(r["n"], r["peak_bytes"] / 2**20) for r in rows if r["method"] == method], lambda n: n, "n")
    left.set(title="time of one call", xlabel="points n", ylabel="seconds")
    right.set(title="memory beyond the clouds", xlabel="points n", ylabel="MiB")
    last.set(title=f"error of the sums at {CHECKED} points", xlabel="points n", ylabel="relative")
    for axis in (left, right, last):
        axis.grid(alpha=0.3, which="both")
    left.legend()
    write_png(drawing, path)


def _guide(axis, points: list[tuple[float, float]], law, text: str) -> None:
    """A dashed line of the given law through the last of the points, if they are several, over a decade and a half."""
    if len(points) < 2:
        return
    end, value = max(points)
    start = end / 30
    axis.loglog([start, end], [value * law(start) / law(end), value], "--", color="0.5", linewidth=1)
    axis.annotate(
        text, (start, value * law(start) / law(end)), color="0.4", xytext=(8, -10), textcoords="offset points"
    )
