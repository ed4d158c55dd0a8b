"""Measure what the backends cost on this CPU, and write the table by which backend="auto" chooses."""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from pathlib import Path

import torch
import torch._inductor.config

from bench import machine, options
from bench.measure import seconds
from bench.report import write_json
from ddeq_fast import Gaussian, InverseMultiquadric, Laplacian, RadialKernel, Riesz, potential_and_field
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import costs, sliced

# Points by dimension: enough to fill the tiles, few enough to be done in a second.
SIZES = {"dense": 2000, "compiled": 6000, "products": 5000, "keops": 4000}
DIMENSIONS = {
    "dense": (1, 2, 3, 4, 8, 9, 16, 32, 64, 128),
    "compiled": (1, 2, 3, 4, 8),
    "products": (9, 16, 32, 64, 128, 256),
    "keops": (2, 3, 8, 16, 64),
}
# Entries of the table that are a part of a backend: above 8 dimensions the compiled one is other code.
PARTS = {"products": "compiled"}
ENERGY_DISTANCE = Riesz(1.0)
KERNELS = (Riesz(1.5), Gaussian(1.0), Laplacian(1.0), InverseMultiquadric(1.0))
# Memory beyond inputs and results in bytes, for each point and for each of its coordinates: what the code allocates.
MEMORY = {"compiled": (8, 12), "keops": (4, 8), "sliced": (96, 8), "tree": (400, 40)}


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("calibrate", __doc__)
    text = "file to write (default: the package's own)"
    parser.add_argument("--out", type=Path, metavar="FILE", default=costs.PATH, help=text)
    text = f"keep the others' entries of that file, of the same machine; some of {', '.join(MEASURES)}"
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=MEASURES, help=text)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all)")
    return parser


def main(argv: list[str]) -> int:
    """Measure and write; prints what it measures."""
    parser = _parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    here, entries = {"machine": machine.describe(), "threads": args.threads}, {}
    if args.only:
        kept = json.loads(args.out.read_text(encoding="utf-8"))
        if {name: kept[name] for name in here} != here:
            parser.error(f"--only: {args.out} is of another machine or other versions, measure all of it")
        entries = kept["backends"]
    for name, measure in MEASURES.items():
        reason = backends.get(PARTS.get(name, name)).unsupported(*_probe(3), ENERGY_DISTANCE)
        if reason is not None:
            print(f"{name} left out: {reason}")
        elif not args.only or name in args.only:
            entries[name] = measure()
    for name, (point, number) in MEMORY.items():
        if name in entries:
            entries[name] |= {"point_bytes": point, "number_bytes": number}
    write_json(args.out, {**here, "backends": entries})
    print(f"wrote {args.out.name}")
    return 0


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _probe(d: int):
    x = torch.zeros(1, 1, d)
    return x, x


def _time(
    name: str, n: int, d: int, kernel: RadialKernel = ENERGY_DISTANCE, dtype: torch.dtype = torch.float32
) -> float:
    """Time of one call on n points against themselves: the least of several medians."""
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(n, d, generator=generator).to(dtype), torch.randn(n, generator=generator).to(dtype)

    def run():
        potential_and_field(x, x, kernel, charges=v, backend=PARTS.get(name, name))

    return min(seconds(run, "cpu", budget=0.2) for _ in range(2))


def _first(name: str, d: int) -> float:
    """Time of the first call of all; pykeops keeps what it has compiled, in a folder that is to be empty for this."""
    x = torch.zeros(10, d)
    with torch._inductor.config.patch(force_disable_caches=True):
        started = time.perf_counter()
        potential_and_field(x, x, backend=PARTS.get(name, name))
        return time.perf_counter() - started


def _pairs(name: str, n: int) -> dict:
    """Entry of a backend that sums over all pairs."""
    usual = 3 if 3 in DIMENSIONS[name] else 64  # that of most clouds
    first = _first(name, usual)
    call = _time(name, 10, usual)
    pairs = {str(d): (_time(name, n, d) - call) / n**2 for d in DIMENSIONS[name]}
    base = _time(name, n, usual)
    kernels = {"riesz_1": 1.0} | {costs.kind(k): round(_time(name, n, usual, k) / base, 2) for k in KERNELS}
    double = round(_time(name, n, usual, dtype=torch.float64) / base, 2)
    entry = {
        "call": _rounded(call, 2),
        "first": 0.0 if name == "dense" else _rounded(first, 2),
        "pairs": {d: _rounded(value, 3) for d, value in pairs.items()},
        "kernels": kernels,
        "float64": double,
    }
    print(name, json.dumps(entry), flush=True)
    return entry


def _sliced() -> dict:
    """Entry of the sliced backend, all for each direction.

    Of sorted sums the time for each point and doubling of the points; of those on a grid for each point, by a smooth
    kernel, which has few frequencies, and what frequencies and their doublings add to it, by one with a cusp.
    """
    n, directions = 200_000, backends.get("sliced").directions
    call = _time("sliced", 10, 3)
    points = (_time("sliced", n, 3) - call) / (directions * 2 * n * math.log2(2 * n))
    smooth, cusp = (_time("sliced", n, 3, kernel) for kernel in (Gaussian(1.0), Laplacian(1.0)))
    number = sliced.frequencies(n)
    many = max(0.0, cusp - smooth) / (directions * number * math.log2(number))
    entry = {
        "call": _rounded(call, 2),
        "directions": directions,
        "points": _rounded(points, 3),
        "grid": _rounded((smooth - call) / (directions * 2 * n), 3),
        "frequencies": _rounded(many, 3),
    }
    print("sliced", json.dumps(entry), flush=True)
    return entry


def _tree() -> dict:
    """Entry of the tree backend: time for each point by kernel and dimension, of potentials and what fields it has."""
    n, backend, fields = 200_000, backends.get("tree"), ("riesz_1", "gaussian")
    times: dict[str, dict[str, float]] = {}
    for kernel in (ENERGY_DISTANCE, *KERNELS[1:]):
        kind = costs.kind(kernel)
        times[kind] = {}
        for d in range(1, 4):
            generator = torch.Generator().manual_seed(0)
            x, v = torch.randn(1, n, d, generator=generator), torch.randn(1, n, generator=generator)
            run = functools.partial(backend.evaluate, x, x, v, kernel, True, kind in fields)
            times[kind][str(d)] = _rounded(seconds(run, "cpu", budget=0.2) / (2 * n), 2)
    entry = {"call": 0.01, "tree": times, "fields": list(fields)}
    print("tree", json.dumps(entry), flush=True)
    return entry


# How each backend is measured, in the order of the table.
MEASURES = {
    **{name: functools.partial(_pairs, name, n) for name, n in SIZES.items()},
    "sliced": _sliced,
    "tree": _tree,
}
