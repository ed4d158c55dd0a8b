"""`ddeq-fast explain`: what `backend="auto"` takes for clouds of given sizes, and what every backend would cost."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from ddeq_fast.commands import arguments
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import costs
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils import console
from ddeq_fast.utils.units import duration, size
from ddeq_fast.utils.validation import check_choice, check_device, check_integer

# Sizes of a batch of sums: clouds, targets, sources, dimension. Of the table: backend, two times, memory, a note.
_Shape = tuple[int, int, int, int]
_Row = tuple[str, str, str, str, str]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Predicted time and memory of every backend for potential and field of clouds of\n"
        "these sizes, and which one 'auto' takes. No such cloud is made."
    )
    parser.add_argument("--n", type=int, required=True, help="sources of a cloud")
    parser.add_argument("--d", type=int, required=True, help="dimension of the points")
    parser.add_argument("--m", type=int, help="targets of a cloud (default: as many as sources)")
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="clouds (default: %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, metavar="T", help="relative error that 'auto' may make (default: none)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the points (default: %(default)s)")
    arguments.add_device(parser, "cpu")
    arguments.add_kernel(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    text = explain(
        options.n,
        options.d,
        options.kernel,
        m=options.m,
        batch=options.batch,
        dtype=options.dtype,
        device=options.device,
        tolerance=options.tolerance,
    )
    console.say(text, result=True)
    return 0


def explain(
    n: int,
    d: int,
    kernel: RadialKernel,
    *,
    m: int | None = None,
    batch: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    tolerance: float | None = None,
) -> str:
    """A table of all backends for potential and field at m targets (n if None) of n sources, in `batch` clouds.

    Times are predicted from measurements on the CPU that the table names; no cloud of these sizes is made. The
    tolerance is that of `potential`.

    Raises ValueError if a size is below one, the dtype or tolerance no such thing, or the device not there.
    """
    check_integer("n", n)
    shape = (check_integer("batch", batch), check_integer("m", n if m is None else m), n, check_integer("d", d))
    check_choice("dtype", dtype, DTYPES)
    x, y = _stand_ins(shape, DTYPES[dtype], device)
    taken = backends.base(backends.resolve(backends.to_tolerance("auto", tolerance), x, y, kernel))
    rows: list[_Row] = [("backend", "first call", "each call", "memory", "")]
    rows += [_row(name, shape, x, y, kernel, taken) for name in backends.names()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{shape[1]:,} targets, {n:,} sources, {d} dimensions, {batch} {'cloud' if batch == 1 else 'clouds'}, "
        f"{dtype}, {kernel}, {_where(x.device)}",
        "",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows),
        "",
        f'"auto" takes {taken}: {_why(taken, x)}.',
    ]
    if x.device.type == "cpu":
        lines.append(f"Times are scaled from measurements on {costs.table()['machine']['cpu']}.")
    lines.append(f"Matrices of pairs may take {size(backends.memory_budget())} (DDEQ_FAST_MEMORY, set_memory_budget).")
    return "\n".join(lines)


def _stand_ins(shape: _Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Clouds of these shapes that hold one number."""
    batch, m, n, d = shape
    one = torch.zeros(1, 1, 1, dtype=dtype, device=check_device(device))
    return one.expand(batch, m, d), one.expand(batch, n, d)


def _row(name: str, shape: _Shape, x: Tensor, y: Tensor, kernel: RadialKernel, taken: str) -> _Row:
    reason = backends.get(name).unsupported(x, y, kernel)
    mark = f"{name} *" if name == taken else name
    if reason is not None:
        return (mark, "-", "-", "-", f"cannot: {reason}")
    seconds = costs.call_seconds(name, shape, kernel, x.dtype) if x.device.type == "cpu" else None
    needed = costs.call_bytes(name, shape, x.element_size(), x.device)
    memory = "-" if needed is None else size(needed)
    note = "" if backends.exact(name) else "an estimate, not exact"
    if seconds is None:
        return (mark, "not measured", "not measured", memory, note)
    return (mark, duration(seconds + costs.first_seconds(name, shape[3])), duration(seconds), memory, note)


def _why(taken: str, x: Tensor) -> str:
    if taken == "triton":
        return "on a GPU its kernels move no matrix through memory"
    if taken == "tree":
        return "within the tolerance it is faster than exact sums"
    if taken == "compiled":
        return f"in {costs.calls()} calls it saves more time than compiling takes"
    if taken == "dense" and x.device.type == "cpu":
        return f"in {costs.calls()} calls no other exact one saves more time than compiling takes"
    return "the first in the order of preference that can"


def _where(device: torch.device) -> str:
    return f"cpu with {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
