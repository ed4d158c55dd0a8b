"""Better block sizes for the Triton kernels: tried on this GPU, or judged by machine code without one.

On a GPU the time of a launch decides. Without one (--target) it is the issue slots a pair of the main loop, among
blocks that spill nothing; only sums carried out a pair at a time are judged so.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bench import options, sass
from bench.measure import seconds
from bench.roofline import Launch, scalar_bound
from ddeq_fast.utils.files import write_atomically

# What stands for a class of shapes: by the kernel's name in the table and the class's limit there.
SHAPES = {
    "low_d.evaluate": {4: Launch(), 9: Launch(d=8), 18: Launch(d=8, dtype=torch.float64)},
    "low_d.tangent": {
        4: Launch("tangent"),
        10: Launch("tangent", d=8),
        18: Launch("tangent", d=8, dtype=torch.float64),
    },
    "nearest": {
        8: Launch("nearest", "nearest"),
        16: Launch("nearest", "nearest", d=8, dtype=torch.float64),
        32: Launch("nearest", "nearest", d=128),
        64: Launch("nearest", "nearest", d=128, dtype=torch.float64),
    },
    "direct": {
        **{d: Launch(module="direct", d=d, n=20) for d in (4, 16, 32, 64, 128, 256, 512, 1024)},
        4096: Launch("tangent", "direct", d=1024, n=20, dtype=torch.float64),
    },
    "high_d.evaluate": {1024: Launch(module="high_d", d=128)},
    "high_d.tangent": {1024: Launch("tangent", "high_d", d=128)},
}
_PAIRS = list(itertools.product((16, 32, 64, 128), (16, 32, 64), (2, 4, 8)))
_PRODUCTS = list(itertools.product((64, 128), (16, 32, 64), (16, 32, 64), (64, 128), (4, 8)))
CANDIDATES = {
    "low_d.evaluate": _PAIRS,
    "low_d.tangent": _PAIRS,
    "nearest": _PAIRS,
    "direct": list(itertools.product((1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8))),
    "high_d.evaluate": _PRODUCTS,
    "high_d.tangent": _PRODUCTS,
}
BY_MACHINE_CODE = ("low_d.evaluate", "low_d.tangent", "nearest")
# A block must be better by this part to replace the one in the table: less is noise.
GAIN = 0.02


@contextlib.contextmanager
def using(name: str, device: str, limit: int, block: tuple[int, ...]):
    """Launches inside take `block` for one class of shapes."""
    from ddeq_fast.kernels.launch import BLOCKS

    before = BLOCKS[name]
    BLOCKS[name] = {**before, device: {**before.get(device, before["other"]), limit: block}}
    try:
        yield
    finally:
        BLOCKS[name] = before


def time_on_gpu(launch: Launch) -> float:
    """Seconds that it takes on the present GPU; infinite if the block does not fit."""
    from triton.runtime.errors import OutOfResources

    try:
        return seconds(launch.prepared("cuda", 64 if launch.module == "direct" else 16), "cuda", 0.1)
    except OutOfResources:
        return math.inf


def slots_for(target: str) -> Callable[[Launch], float]:
    """A function of a launch: issue slots a pair on `target`; infinite if registers spill."""

    def slots(launch):
        with sass.compiling(target) as codes:
            launch.prepared()()
        code = next(code for code in codes if code.is_sum)
        return scalar_bound(launch, code, target)["slots"] if code.resources()[1] == 0 else math.inf

    return slots


def best(name: str, device: str, limit: int, cost: Callable[[Launch], float]) -> tuple[tuple[int, ...], float, float]:
    """(block, its cost, the cost of the block in the table) of one class of shapes; the table's unless beaten."""
    from ddeq_fast.kernels.launch import BLOCKS

    table = BLOCKS[name]
    kept = table.get(device, table["other"])[limit]

    def cost_of(block):
        with using(name, device, limit, block):
            return cost(SHAPES[name][limit])

    before = cost_of(kept)
    least, block = min((cost_of(block), block) for block in CANDIDATES[name] if block != kept)
    return (block, least, before) if least < (1 - GAIN) * before else (kept, before, before)


def dumps(tables: dict) -> str:
    """The table as JSON, a line for each architecture; see `kernels.launch.load_blocks`."""
    parts = []
    for name, table in tables.items():
        lines = ",\n".join(f"  {json.dumps(device)}: {json.dumps(sizes)}" for device, sizes in table.items())
        parts.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def updated(tables: dict, device: str, found: dict[str, dict[int, tuple[int, ...]]]) -> dict:
    """The tables with the blocks `found` for `device`; what differs in nothing from "other" gets no line."""
    result = dict(tables)
    for name, blocks in found.items():
        table = tables[name]
        sizes = {**table.get(device, table["other"]), **blocks}
        if device in table or sizes != table["other"]:
            result[name] = {**table, device: sizes}
    return result


def _parser() -> argparse.ArgumentParser:
    from ddeq_fast.kernels.launch import BLOCKS_FILE

    parser = options.parser("tune", __doc__)
    nvidia = [target for target in sass.TARGETS if target.startswith("sm_")]
    text = f"judge by machine code compiled for one of {', '.join(nvidia)}; no GPU needed"
    parser.add_argument("--target", metavar="TARGET", choices=nvidia, help=text)
    names = f"one of {', '.join(SHAPES)}; may be repeated (default: all)"
    parser.add_argument("--only", metavar="NAME", choices=SHAPES, action="append", help=names)
    text = "file to write (default: the package's own table)"
    parser.add_argument("--output", type=Path, metavar="FILE", default=BLOCKS_FILE, help=text)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    return parser


def main(argv: list[str]) -> int:
    """Try, report a line for each class of shapes, rewrite the table."""
    from ddeq_fast.kernels.launch import BLOCKS, current_architecture

    args = _parser().parse_args(argv)
    names = args.only or [name for name in SHAPES if args.target is None or name in BY_MACHINE_CODE]
    problem = None
    if args.target is None and not torch.cuda.is_available():
        problem = "no GPU to measure on; --target judges by machine code"
    elif args.target is not None:
        unjudged = [name for name in names if name not in BY_MACHINE_CODE]
        problem = sass.missing() or (f"{', '.join(unjudged)}: needs a GPU to measure on" if unjudged else None)
    if problem:
        print(f"bench tune: error: {problem}", file=sys.stderr)
        return 1
    if args.target:
        device, cost, unit = str(sass.TARGETS[args.target][1]), slots_for(args.target), "slots a pair"
    else:
        device, cost, unit = current_architecture(), time_on_gpu, "seconds"
    print(f"| kernel | registers up to | block | {unit} | before |\n|---|---|---|---|---|")
    found: dict[str, dict] = {}
    for name in names:
        for limit in SHAPES[name]:
            block, after, before = best(name, device, limit, cost)
            found.setdefault(name, {})[limit] = block
            print(f"| {name} | {limit} | {block} | {after:.4g} | {before:.4g} |", flush=True)
    if not args.dry_run:
        write_atomically(args.output, dumps(updated(BLOCKS, device, found)).encode())
        print(f"written: {args.output}")
    return 0
