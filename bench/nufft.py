"""Sums along one direction of the sliced backend by its own grid and by finufft: time and error.

finufft is not needed by the package: this is to see what it would bring.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch

from bench import machine, options
from bench.report import write_json
from ddeq_fast import Gaussian, Laplacian
from ddeq_fast.sums.backends import lines, sliced, spectra
from ddeq_fast.utils.optional import require
from ddeq_fast.utils.units import duration

SIZES = (1000, 10_000, 100_000, 1_000_000)
DIMENSION = 3
# Gaussians have few frequencies, Laplacians as many as a grid may.
KERNELS = (Gaussian(1.0), Laplacian(1.0))
REFERENCE = 1e-13


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("nufft", __doc__)
    options.add_largest(parser)
    options.add_json(parser)
    return parser


def main(argv: list[str]) -> int:
    """Measure and print a table; raises ImportError without finufft."""
    args = _parser().parse_args(argv)
    require("finufft", "finufft")
    described = machine.describe()
    print(machine.line(described) + "\n")
    print("kernel and its derivative, of n charges on a line at n other points, float64\n")
    print("| kernel | frequencies | n | by | time | relative error |\n|---|---|---|---|---|---|")
    rows = []
    for kernel in KERNELS:
        for n in SIZES:
            for row in measure(kernel, n) if n <= args.largest else ():
                rows.append(row)
                cells = [row["kernel"], f"{row['frequencies']:,}", f"{n:,}", row["by"], duration(row["seconds"], 3)]
                print("| " + " | ".join([*cells, f"{row['error']:.1e}"]) + " |", flush=True)
    if args.json:
        write_json(args.json, {"machine": described, "rows": rows})
    return 0


def measure(kernel: Gaussian | Laplacian, n: int) -> list[dict]:
    """Rows of the table for one kernel and size: the best of three calls, errors against finufft at full precision."""
    generator = torch.Generator().manual_seed(0)
    t, s, v = (torch.randn(1, n, generator=generator, dtype=torch.float64) for _ in range(3))
    width = 2.0002 * float(torch.cat([t, s]).abs().max())
    number = 1 << 8 if kernel.smooth else 1 << math.ceil(math.log2(sliced.frequencies(n)))
    period = spectra.PERIOD * width
    b = spectra.series([(1.0, kernel)], DIMENSION, width, number)
    grid = lines.Grid(b, period, t.device)

    def own() -> np.ndarray:
        return torch.cat(grid.read(grid.spread(s, v), t, 0, 1)).numpy()

    ways = {"grid": own, "finufft": lambda: by_finufft(b, period, t, s, v, lines.WINDOW_ERROR)}
    exact = by_finufft(b, period, t, s, v, REFERENCE)
    rows = []
    for name, way in ways.items():
        errors = np.linalg.norm(way() - exact, axis=1) / np.linalg.norm(exact, axis=1)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            way()
            times.append(time.perf_counter() - started)
        rows.append({"kernel": str(kernel), "frequencies": number, "n": n, "by": name, "seconds": min(times)})
        rows[-1]["error"] = float(errors.max())
    return rows


def by_finufft(b: np.ndarray, period: float, t: torch.Tensor, s: torch.Tensor, v: torch.Tensor, eps: float):
    """(2, n): the sum of the series b and its derivative at t (1, n), of charges v at s, within eps."""
    finufft = require("finufft", "finufft")
    step, k = 2 * math.pi / period, np.arange(1 - len(b), len(b))
    modes = finufft.nufft1d1(step * s[0].numpy(), v[0].numpy().astype(complex), len(k), eps=eps, isign=-1)
    modes = modes * b[abs(k)] / np.where(k == 0, 1, 2)
    return finufft.nufft1d2(step * t[0].numpy(), np.stack([modes, 1j * step * k * modes]), eps=eps, isign=1).real
