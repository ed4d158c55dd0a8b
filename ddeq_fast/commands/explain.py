"""`ddeq-fast explain`: what `backend="auto"` takes for clouds of given sizes, and what every backend would cost."""

from __future__ import annotations

import argparse
import json
from typing import Any

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
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    found = predict(
        options.n,
        options.d,
        options.kernel,
        m=options.m,
        batch=options.batch,
        dtype=options.dtype,
        device=options.device,
        tolerance=options.tolerance,
    )
    console.say(json.dumps(found) if options.json else in_words(found), result=True)
    return 0


def predict(
    n: int,
    d: int,
    kernel: RadialKernel,
    *,
    m: int | None = None,
    batch: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    tolerance: float | None = None,
) -> dict[str, Any]:
    """What potential and field at m targets (n if None) of n sources, in `batch` clouds, cost with every backend.

    Times are predicted from measurements on a CPU, `measured_on`; no cloud of these sizes is made. The tolerance is
    that of `potential`.

    Returns:
        The sizes, the backend that "auto" takes and why, and of each of `backends` why it cannot run these clouds
        ("reason", None if it can), the "seconds" of a call and the "first_seconds" of the first, None where they were
        not measured, "bytes" of memory, None where they are not known, and whether it is "exact".

    Raises ValueError if a size is below one, the dtype or tolerance no such thing, or the device not there.
    """
    check_integer("n", n)
    shape = (check_integer("batch", batch), check_integer("m", n if m is None else m), n, check_integer("d", d))
    check_choice("dtype", dtype, DTYPES)
    x, y = _stand_ins(shape, DTYPES[dtype], device)
    taken = backends.base(backends.resolve(backends.to_tolerance("auto", tolerance), x, y, kernel))
    return {
        "clouds": shape[0],
        "targets": shape[1],
        "sources": n,
        "dim": d,
        "dtype": dtype,
        "kernel": str(kernel),
        "device": str(x.device),
        "threads": torch.get_num_threads(),
        "tolerance": tolerance,
        "auto": taken,
        "why": _why(taken, x),
        "backends": [_cost(name, shape, x, y, kernel) for name in backends.names()],
        "measured_on": costs.table()["machine"]["cpu"] if x.device.type == "cpu" else None,
        "memory_budget": backends.memory_budget(),
    }


def in_words(found: dict[str, Any]) -> str:
    """What `predict` found, as a table."""
    rows: list[_Row] = [("backend", "first call", "each call", "memory", "")]
    rows += [_row(cost, found["auto"]) for cost in found["backends"]]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    clouds, where = found["clouds"], found["device"]
    if found["measured_on"] is not None:
        where += f" with {found['threads']} threads"
    lines = [
        f"{found['targets']:,} targets, {found['sources']:,} sources, {found['dim']} dimensions, "
        f"{clouds} {'cloud' if clouds == 1 else 'clouds'}, {found['dtype']}, {found['kernel']}, {where}",
        "",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows),
        "",
        f'"auto" takes {found["auto"]}: {found["why"]}.',
    ]
    if found["measured_on"] is not None:
        lines.append(f"Times are scaled from measurements on {found['measured_on']}.")
    budget = size(found["memory_budget"])
    lines.append(f"Matrices of pairs may take {budget} (DDEQ_FAST_MEMORY, set_memory_budget).")
    return "\n".join(lines)


def _stand_ins(shape: _Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Clouds of these shapes that hold one number."""
    batch, m, n, d = shape
    one = torch.zeros(1, 1, 1, dtype=dtype, device=check_device(device))
    return one.expand(batch, m, d), one.expand(batch, n, d)


def _cost(name: str, shape: _Shape, x: Tensor, y: Tensor, kernel: RadialKernel) -> dict[str, Any]:
    """An entry of `predict`."""
    reason = backends.get(name).unsupported(x, y, kernel)
    seconds = needed = None
    if reason is None:
        seconds = costs.call_seconds(name, shape, kernel, x.dtype) if x.device.type == "cpu" else None
        needed = costs.call_bytes(name, shape, x.element_size(), x.device)
    return {
        "backend": name,
        "reason": reason,
        "first_seconds": None if seconds is None else seconds + costs.first_seconds(name, shape[3]),
        "seconds": seconds,
        "bytes": needed,
        "exact": backends.exact(name),
    }


def _row(cost: dict[str, Any], taken: str) -> _Row:
    name, needed = cost["backend"], cost["bytes"]
    mark = f"{name} *" if name == taken else name
    if cost["reason"] is not None:
        return (mark, "-", "-", "-", f"cannot: {cost['reason']}")
    memory = "-" if needed is None else size(needed)
    note = "" if cost["exact"] else "an estimate, not exact"
    if cost["seconds"] is None:
        return (mark, "not measured", "not measured", memory, note)
    return (mark, duration(cost["first_seconds"]), duration(cost["seconds"]), memory, note)


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
