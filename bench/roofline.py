"""Bounds on the speed of the Triton kernels, by their machine code: issue slots a pair, pairs a second.

Nothing is run. Each kernel is compiled for the target as its launcher would launch it, and the instructions of its
main loop are counted; the slowest of the units that execute them sets the bound.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench import options, sass
from bench.report import write_json

# Thread instructions a clock and multiprocessor, by target: CUDA C++ programming guide, arithmetic throughput table;
# "issue" is four schedulers times 32 threads.
THROUGHPUT = {
    "sm_80": {"issue": 128, "fp32": 64, "special": 16, "fp64": 32},
    "sm_90": {"issue": 128, "fp32": 128, "special": 16, "fp64": 64},
    "sm_100": {"issue": 128, "fp32": 128, "special": 16, "fp64": 64},
}
# Multiprocessors, boost clock in GHz and dense TF32 TFLOP/s (makers' data sheets), by target.
GPUS = {
    "sm_80": {"A100 SXM": (108, 1.41, 156)},
    "sm_90": {"H100 SXM, H200": (132, 1.98, 495)},
    "sm_100": {"B200": (148, 1.98, 1100)},
}
# Opcodes by the unit that executes them, with the operations one instruction stands for.
UNITS = {
    "fp32": {"FADD": 1, "FMUL": 1, "FFMA": 1, "FADD2": 2, "FMUL2": 2, "FFMA2": 2},
    "special": {"MUFU": 1},
    "fp64": {"DADD": 1, "DMUL": 1, "DFMA": 1},
}


@dataclass(frozen=True)
class Launch:
    """One call of a launcher of kernels, on clouds of n points in dimension d.

    sums: "evaluate", "energy", "tangent" or "nearest", a function of `module` in `ddeq_fast.kernels`. codes: of the
    terms of the radial kernel, see `kernels.radial`. masked: nearest points among padding.
    """

    sums: str = "evaluate"
    module: str = "low_d"
    d: int = 3
    n: int = 4096
    codes: tuple[str, ...] = ("riesz_1",)
    potential: bool = True
    field: bool = True
    masked: bool = False
    dtype: torch.dtype = torch.float32

    def prepared(self, device: str = "meta", batch: int = 2) -> Callable[[], object]:
        """A function without arguments that calls the launcher; on device "meta" with tensors that have no values."""
        from ddeq_fast.kernels import radial

        def draw(*shape):
            return torch.randn(batch, self.n, *shape, dtype=self.dtype, device=device)

        kernel = self.codes, radial.parameters([(1.0, 1.0)] * len(self.codes))
        x, y, v = draw(self.d), draw(self.d), draw()
        mask = torch.ones_like(v, dtype=torch.bool) if self.masked else None
        arguments = {
            "evaluate": (x, y, v, *kernel, self.potential, self.field),
            "energy": (x, v, *kernel, self.field),
            "tangent": (x, y, v, torch.randn_like(x), torch.randn_like(y), *kernel),
            "nearest": (x, y, mask),
        }
        launcher = getattr(importlib.import_module(f"ddeq_fast.kernels.{self.module}"), self.sums)
        return functools.partial(launcher, *arguments[self.sums])


LAUNCHES = {
    "d=1": Launch(d=1),
    "d=2": Launch(d=2),
    "d=3": Launch(d=3),
    "d=3, potential": Launch(field=False),
    "d=3, field": Launch(potential=False),
    "d=8": Launch(d=8),
    "d=3, gaussian": Launch(codes=("gaussian",)),
    "d=3, mixture": Launch(codes=("riesz_1", "gaussian", "laplacian")),
    "d=3, float64": Launch(dtype=torch.float64),
    "d=8, float64": Launch(d=8, dtype=torch.float64),
    "d=3, float16": Launch(dtype=torch.float16),
    "d=3, tangent": Launch("tangent"),
    "d=8, tangent": Launch("tangent", d=8),
    "d=3, tangent, mixture": Launch("tangent", codes=("riesz_1", "gaussian", "laplacian")),
    "d=4, tangent, float64": Launch("tangent", d=4, dtype=torch.float64),
    "d=8, tangent, float64": Launch("tangent", d=8, dtype=torch.float64),
    "high, d=16": Launch(module="high_d", d=16),
    "high, d=128": Launch(module="high_d", d=128),
    "high, d=128, potential": Launch(module="high_d", d=128, field=False),
    "high, d=128, mixture": Launch(module="high_d", d=128, codes=("riesz_1", "gaussian", "laplacian")),
    "high, d=1000": Launch(module="high_d", d=1000),
    "high, d=128, tangent": Launch("tangent", "high_d", d=128),
    "high, d=1000, tangent": Launch("tangent", "high_d", d=1000),
    "direct, d=3": Launch(module="direct", d=3, n=64),
    "direct, d=128": Launch(module="direct", d=128, n=20),
    "direct, d=1024": Launch(module="direct", d=1024, n=20),
    "direct, d=128, energy": Launch("energy", "direct", d=128, n=20),
    "direct, d=128, float64": Launch(module="direct", d=128, dtype=torch.float64),
    "direct, d=1024, float64": Launch(module="direct", d=1024, dtype=torch.float64),
    "direct, d=128, tangent": Launch("tangent", "direct", d=128, n=20),
    "direct, d=1024, tangent, float64": Launch("tangent", "direct", d=1024, dtype=torch.float64),
    "nearest, d=2": Launch("nearest", "nearest", d=2),
    "nearest, d=3": Launch("nearest", "nearest"),
    "nearest, d=3, masked": Launch("nearest", "nearest", masked=True),
    "nearest, d=8": Launch("nearest", "nearest", d=8),
    "nearest, d=8, masked": Launch("nearest", "nearest", d=8, masked=True),
    "nearest, d=128": Launch("nearest", "nearest", d=128),
    "nearest, d=128, masked": Launch("nearest", "nearest", d=128, masked=True),
    "nearest, d=3, float64": Launch("nearest", "nearest", dtype=torch.float64),
    "nearest, d=8, masked, float64": Launch("nearest", "nearest", d=8, masked=True, dtype=torch.float64),
    "nearest, d=128, float64": Launch("nearest", "nearest", d=128, dtype=torch.float64),
    "nearest, d=128, masked, float64": Launch("nearest", "nearest", d=128, masked=True, dtype=torch.float64),
}


def bounds(loop: sass.Loop, pairs: float, target: str) -> dict[str, float]:
    """Clocks a pair on one multiprocessor, by unit; `pairs` are those a thread deals with in a round of the loop."""
    rate = THROUGHPUT[target]
    found = {"issue": loop.slots / pairs / rate["issue"]}
    for unit, weights in UNITS.items():
        operations = sum(loop.opcodes.get(opcode, 0) * weight for opcode, weight in weights.items())
        found[unit] = operations / pairs / rate[unit]
    return found


def scalar_bound(launch: Launch, code: sass.Code, target: str) -> dict:
    """Columns for sums carried out a pair at a time."""
    loop, pairs = code.main_loop(), code.pairs_per_thread()
    if code.options.get("UNROLLED") == 0:  # a round is one part of the coordinates
        pairs /= math.ceil(launch.d / code.options["WIDTH"])
    clocks = bounds(loop, pairs, target)
    bound = max(clocks, key=clocks.get)
    rates = {gpu: count * clock * 1e9 / clocks[bound] for gpu, (count, clock, _) in GPUS[target].items()}
    return {"loop": loop.opcodes, "slots": loop.slots / pairs, "bound": bound, "pairs_per_s": rates}


def _tensor_bound(launch: Launch, code: sass.Code, target: str) -> dict:
    """Columns for sums through matrix products: each counts three times, in three parts of lower precision."""
    parts = math.ceil(launch.d / code.options["BLOCK_F"]) if launch.field else 1
    # Every part of the field forms the distances anew, by one product or by three, and is one product or two itself.
    products = 3 * parts + 2 if launch.sums == "tangent" else parts + launch.field
    operations = 3 * 2 * launch.d * products
    rates = {gpu: tf32 * 1e12 / operations for gpu, (*_, tf32) in GPUS[target].items()}
    return {"bound": "tensor", "pairs_per_s": rates}


def measure(target: str, launches: dict[str, Launch]) -> list[dict]:
    """A row for each launch, read from its machine code."""
    rows = []
    for name, launch in launches.items():
        with sass.compiling(target) as codes:
            launch.prepared()()
        code = next(code for code in codes if code.is_sum)
        registers = max(code.resources()[0] for code in codes)
        spilled = sum(code.resources()[1] for code in codes)
        row = {"launch": name, "registers": registers, "spilled": spilled, "opcodes": code.opcodes()}
        if target in THROUGHPUT:
            high = launch.module == "high_d"
            row |= _tensor_bound(launch, code, target) if high else scalar_bound(launch, code, target)
        rows.append(row)
    return rows


def report(rows: list[dict], target: str) -> str:
    """The rows as a Markdown table."""
    gpus = list(GPUS.get(target, ()))
    heads = ["launch", "registers", "spilled", "slots a pair", "bound", *(f"{gpu}: Gpairs/s at most" for gpu in gpus)]
    lines = [
        f"{target}: bounds from the machine code, not measurements",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for row in rows:
        cells = [row["launch"], str(row["registers"]), str(row["spilled"])]
        cells += [f"{row['slots']:.2f}" if "slots" in row else "", row.get("bound", "")]
        cells += [f"{row['pairs_per_s'][gpu] / 1e9:.1f}" for gpu in gpus]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("roofline", __doc__)
    targets = f"one of {', '.join(sass.TARGETS)} (default: %(default)s)"
    parser.add_argument("--target", metavar="TARGET", choices=sass.TARGETS, default="sm_90", help=targets)
    names = f"one of {'; '.join(LAUNCHES)}; may be repeated (default: all)"
    parser.add_argument("--launch", metavar="NAME", choices=LAUNCHES, action="append", help=names)
    options.add_json(parser)
    return parser


def main(argv: list[str]) -> int:
    """Compile, count, print the table, write the JSON file if asked."""
    args = _parser().parse_args(argv)
    reason = sass.missing()
    if reason:
        print(f"bench roofline: error: {reason}", file=sys.stderr)
        return 1
    rows = measure(args.target, {name: LAUNCHES[name] for name in args.launch or LAUNCHES})
    print(report(rows, args.target))
    if args.json:
        write_json(args.json, {"target": args.target, "rows": rows})
    return 0
