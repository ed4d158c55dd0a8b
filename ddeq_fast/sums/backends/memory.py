"""The memory that matrices of pairs may take: a budget the user can set, and tiles that keep to it.

The budget covers temporary values of one sum, not the clouds themselves nor the results. It is set by
`set_memory_budget` or the environment variable DDEQ_FAST_MEMORY, such as "512M" or "2G".
"""

from __future__ import annotations

import functools
import math
import os
import re
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddeq_fast.utils import tree

DEFAULT_BUDGET = 256 << 20
VARIABLE = "DDEQ_FAST_MEMORY"
# A CPU works through what its caches hold in half the time.
CPU_TILE = 32 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_budget: list[int] = []  # empty until it is set


def set_memory_budget(size: int | str | None) -> None:
    """Let the matrices of one sum take at most `size` bytes, or text such as "512M"; None restores the default.

    Raises TypeError or ValueError for anything but a positive size.
    """
    _budget[:] = [] if size is None else [_bytes("size", size)]


def memory_budget() -> int:
    """The budget in bytes; raises ValueError if DDEQ_FAST_MEMORY holds no size."""
    return _budget[0] if _budget else _from_environment(os.environ.get(VARIABLE))


@functools.cache
def _from_environment(text: str | None) -> int:
    return DEFAULT_BUDGET if text is None else _bytes(VARIABLE, text)


def _bytes(name: str, size: int | str) -> int:
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"{name} must be a number of bytes or text such as '512M', got {type(size).__name__}")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(size).strip(), re.IGNORECASE)
    value = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if value < 1:
        raise ValueError(f"{name} must be a positive number of bytes or text such as '512M', got {size!r}")
    return value


def tile_pairs(device: torch.device, pair_bytes: int) -> int:
    """Pairs a tile may hold where each takes `pair_bytes`."""
    size = memory_budget()
    return max(1, (min(size, CPU_TILE) if device.type == "cpu" else size) // pair_bytes)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is what an allocator raises."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@functools.cache
def _warn_once() -> None:
    message = "out of memory: going on with smaller tiles (see ddeq_fast.sums.backends.set_memory_budget)"
    warnings.warn(message, RuntimeWarning, stacklevel=6)


# Of all sums that a backend was asked for, None for one that is not wanted.
Sums = tuple[Tensor | None, ...]


class Tiles:
    """Runs sums over all pairs in tiles.

    `sums(targets, sources)` takes lists of tensors (B, m, ...) and (B, n, ...) and returns a tuple of (B, m, ...)
    tensors or None, additive in the sources. A tile that does not fit into memory is halved, and so are those after it.
    """

    def __init__(self, sums: Callable[[Sequence[Tensor], Sequence[Tensor]], Sums], pairs: int):
        self.sums, self.pairs = sums, pairs

    def run(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> Sums:
        """The sums over all sources, for all targets."""
        (batch, m), n = targets[0].shape[:2], sources[0].shape[1]
        if batch * m * n <= self.pairs or batch == m == n == 1:
            try:
                return self.sums(targets, sources)
            except RuntimeError as error:
                if batch == m == n == 1 or not out_of_memory(error):
                    raise
            # Out of the handler, whose traceback keeps the failed tile's memory.
            _warn_once()
            self.pairs = batch * m * n // 2
        if batch > 1:
            clouds = max(1, self.pairs // (m * n))
            parts = [
                self.run([t[b : b + clouds] for t in targets], [s[b : b + clouds] for s in sources])
                for b in range(0, batch, clouds)
            ]
            return tree.joined(parts)
        # Square tiles load the fewest points, and keep sums in single precision short.
        rows = even(m, max(self.pairs // n, math.isqrt(self.pairs)))
        columns = even(n, max(1, self.pairs // rows))
        parts = []
        for i in range(0, m, rows):
            block = [t[:, i : i + rows] for t in targets]
            tiles = [self.run(block, [s[:, j : j + columns] for s in sources]) for j in range(0, n, columns)]
            parts.append(functools.reduce(added, tiles))
        return tree.joined(parts, 1)


def even(points: int, most: int) -> int:
    """Points of each part, where as few parts as hold at most so many are as large as each other."""
    return -(-points // -(-points // most))


def added(a: Sums, b: Sums) -> Sums:
    """Sum by sum; None where one was not wanted."""
    return tuple(None if p is None or q is None else p + q for p, q in zip(a, b, strict=True))
