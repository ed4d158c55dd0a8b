"""What `backend="auto"` takes for clouds of given sizes, and what every backend would cost: `ddeq-fast explain`."""

from __future__ import annotations

import torch

from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import costs
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils.units import duration, size
from ddeq_fast.utils.validation import check_choice, check_device, check_integer

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def explain(
    n: int,
    d: int,
    kernel: RadialKernel,
    *,
    m: int | None = None,
    batch: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
) -> str:
    """A table of all backends for potential and field at m targets (n if None) of n sources, in `batch` clouds.

    Times are predicted from measurements on the CPU that the table names; no cloud of these sizes is made.

    Raises ValueError if a size is below one, the dtype unknown or the device not there.
    """
    shape = tuple(
        check_integer(name, value)
        for name, value in (("batch", batch), ("m", n if m is None else m), ("n", n), ("d", d))
    )
    check_choice("dtype", dtype, DTYPES)
    x, y = _stand_ins(shape, DTYPES[dtype], device)
    taken = backends.resolve("auto", x, y, kernel)
    rows = [("backend", "first call", "each call", "memory", "")]
    rows += [_row(name, shape, x, y, kernel, taken) for name in backends.names()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{shape[1]:,} targets, {shape[2]:,} sources, {d} dimensions, {batch} "
        + f"cloud{'s' * (batch > 1)}, {dtype}, {kernel}, {_where(x.device)}",
        "",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows),
        "",
        f'"auto" takes {taken}: {_why(taken, x)}.',
    ]
    if x.device.type == "cpu":
        lines.append(f"Times are scaled from measurements on {costs.table()['machine']['cpu']}.")
    lines.append(f"Matrices of pairs may take {size(backends.memory_budget())} (DDEQ_FAST_MEMORY, set_memory_budget).")
    return "\n".join(lines)


def _stand_ins(shape, dtype, device):
    """Clouds of these shapes that hold one number."""
    batch, m, n, d = shape
    one = torch.zeros(1, 1, 1, dtype=dtype, device=check_device(device))
    return one.expand(batch, m, d), one.expand(batch, n, d)


def _row(name, shape, x, y, kernel, taken) -> tuple[str, ...]:
    reason = backends.get(name).unsupported(x, y, kernel)
    mark = f"{name} *" if name == taken else name
    if reason is not None:
        return (mark, "-", "-", "-", f"cannot: {reason}")
    seconds = costs.call_seconds(name, shape, kernel, x.dtype) if x.device.type == "cpu" else None
    memory = costs.call_bytes(name, shape, x.elementsize(), x.device)
    note = "an estimate, not exact" if name == "sliced" else ""
    if seconds is None:
        return (mark, "not measured", "not measured", "-" if memory is None else size(memory), note)
    return (mark, duration(seconds + costs.first_seconds(name)), duration(seconds), size(memory), note)


def _why(taken: str, x) -> str:
    if taken == "triton":
        return "on a GPU its kernels move no matrix through memory"
    if taken == "compiled":
        return f"in {costs.CALLS} calls it saves more time than compiling takes"
    if taken == "dense" and x.device.type == "cpu":
        return f"in {costs.CALLS} calls no other exact one saves more time than compiling takes"
    return "the first in the order of preference that can"


def _where(device: torch.device) -> str:
    return f"cpu with {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
