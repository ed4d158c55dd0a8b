"""Compiled backend: pair sums of low dimension on the CPU, fused by torch.compile so that no matrix is formed.

Compiled once for each dimension and kind of kernel. Shapes and all numbers of the kernel are arguments: a Python float
that the compiler sees may be kept from the first call for all later ones, in this process and, from its cache on disk,
in others. Needs a C++ compiler and a folder to write to; without them the dense backend answers, after one warning.
"""

from __future__ import annotations

import functools
import getpass
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq_fast.sums.backends import dense
from ddeq_fast.sums.radial import Elementary, RadialKernel, elementary, unknown

MAX_DIMENSION = 8
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# Pairs and sources handed to compiled code at once: sums in single precision stay short, and if a matrix is not fused
# away after all, it stays small. With four times as many sources, sums in float32 take 10 to 20 % longer, and in two
# dimensions, on one processor, 2.6 times.
TILE = 1 << 23
SOURCES = 1 << 12


def unsupported(x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
    """Needs CPU tensors in single or double precision with few coordinates, and elementary kernels."""
    if x.device.type != "cpu":
        return f"needs tensors on the CPU, got {x.device.type}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"needs float32 or float64, got {x.dtype}"
    if x.shape[-1] > MAX_DIMENSION:
        return f"needs d <= {MAX_DIMENSION}, got d = {x.shape[-1]}"
    strange = unknown(kernel)
    return f"has no code for the kernel {strange}, which is not registered" if strange else None


def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
    """See `Backend.evaluate`."""
    found = _summed("sums", kernel, (x,), (y,), v, (potential, field))
    if found is None:
        return dense.evaluate(x, y, v, kernel, potential, field)
    u = found.pop(0) if potential else None
    return u, (torch.stack(found, -1) if field else None)


def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel):
    """See `Backend.tangent`."""
    found = _summed("tangent", kernel, (x, s), (y, t), v, (True, True))
    if found is None:
        return dense.tangent(x, y, v, s, t, kernel)
    return found[0], torch.stack(found[1:], -1)


@torch.no_grad()
def _summed(op: str, kernel: RadialKernel, targets, sources, v: Tensor, wanted) -> list[Tensor] | None:
    """Sums (B, m) over tiles of sources and targets; None without a compiler."""
    (batch, m, d), n = targets[0].shape, v.shape[1]
    terms = elementary(kernel)
    kinds = tuple((type(term), term.code) for _, term in terms)
    numbers = v.new_tensor([(weight, term.number) for weight, term in terms])
    rows = max(1, TILE // (batch * min(SOURCES, n)))
    columns = [_columns(source) for source in (*sources, v[..., None])]
    blocks = []
    for i in range(0, m, rows):
        block = [_columns(target[:, i : i + rows]) for target in targets]
        total: list[Tensor] = []
        for j in range(0, n, SOURCES):
            tile = [[coordinate[:, j : j + SOURCES] for coordinate in column] for column in columns]
            ones = batch == 1, min(rows, m - i) == 1, min(SOURCES, n - j) == 1
            sums = _run(_Program(op, d, kinds, wanted, v.dtype, ones), block, tile, numbers)
            if sums is None:
                return None
            total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        blocks.append(total)
    return blocks[0] if len(blocks) == 1 else [torch.cat(parts, 1) for parts in zip(*blocks, strict=True)]


def _columns(points: Tensor) -> list[Tensor]:
    """Coordinates of points (B, n, d) as d contiguous tensors (B, n)."""
    return [coordinate.contiguous() for coordinate in points.detach().unbind(-1)]


@dataclass(frozen=True)
class _Program:
    """What a program is compiled for: nothing of it is a float.

    Also its dtype and which of batch, targets and sources are one, sizes that are compiled in: dynamo would compile it
    anew for each of them, which it refuses to do too often.
    """

    op: str
    d: int
    kinds: tuple[tuple[type[Elementary], str], ...]
    wanted: tuple[bool, bool]
    dtype: torch.dtype
    ones: tuple[bool, bool, bool]


_failed: set[_Program] = set()  # could not be compiled: not tried again


def _run(program: _Program, targets, sources, numbers: Tensor) -> list[Tensor] | None:
    """The sums over one tile; None, after one warning, if they cannot be compiled here."""
    if program in _failed:
        return None
    reason: Exception
    try:
        from torch._dynamo.exc import TorchDynamoException  # makes its folder when it is first imported
    except OSError as error:
        reason = error
    else:
        try:
            return _compiled(program)(targets, sources, numbers)
        except (TorchDynamoException, OSError) as error:
            reason = error
    _failed.add(program)
    first = (str(reason).splitlines() or [type(reason).__name__])[0]
    _warn_once(f"{first}; its code goes to {_place()} (environment variable {VARIABLE})")
    return None


def code_folder() -> str:
    """Where torch keeps compiled code; it may not exist. Raises OSError if there is no folder for temporary files."""
    if folder := os.environ.get(VARIABLE):
        return folder
    try:
        user = getpass.getuser()
    except KeyError as error:
        raise OSError(f"the user has no name: {error}") from error
    return os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")


def _place() -> str:
    try:
        return code_folder()
    except OSError as error:
        return f"a folder that cannot be found ({error})"


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"the compiled backend falls back to dense: {reason}", RuntimeWarning, stacklevel=5)


@functools.lru_cache(maxsize=256)
def _compiled(program: _Program) -> Callable[..., list[Tensor]]:
    """Compiled sums over one tile; see `_sums` and `_tangent` for what they return."""
    formula = {"sums": _sums, "tangent": _tangent}[program.op]

    def run(targets, sources, numbers):
        return formula(program.kinds, program.wanted, targets, sources, numbers)

    # Dynamo counts recompilations by code object: each program gets one of its own.
    run.__code__ = run.__code__.replace(co_name=f"{program.op}_{program.d}")
    return torch.compile(run, dynamic=True, fullgraph=True)


def _differences(x, y):
    return [a[:, :, None] - b[:, None] for a, b in zip(x, y, strict=True)]


def _sum_of_products(a, b):
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total = total + a[i] * b[i]
    return total


def _mixed(kinds, numbers, q, order: str):
    """sum_m weight_m k_m(q), or of phi or the curvature."""
    total = 0
    for i, (kind, code) in enumerate(kinds):
        total = total + numbers[i, 0] * kind.profile(order, q, numbers[i, 1], code)
    return total


def _sums(kinds, wanted, targets, sources, numbers):
    """[u, f_1 ... f_d], what is wanted of it, each (B, m)."""
    x, (y, (v,)) = targets[0], sources
    differences = _differences(x, y)
    q = _sum_of_products(differences, differences)
    found = []
    if wanted[0]:
        found.append((_mixed(kinds, numbers, q, "k") * v[:, None]).sum(-1))
    if wanted[1]:
        w = _mixed(kinds, numbers, q, "phi") * v[:, None]
        found += [(w * difference).sum(-1) for difference in differences]
    return found


def _tangent(kinds, wanted, targets, sources, numbers):
    """[du, df_1 ... df_d], each (B, m)."""
    (x, s), (y, t, (v,)) = targets, sources
    differences, moves = _differences(x, y), _differences(s, t)
    q, along = _sum_of_products(differences, differences), _sum_of_products(differences, moves)
    phi = _mixed(kinds, numbers, q, "phi") * v[:, None]
    inverse = torch.where(q > 0, q, torch.ones_like(q)).rsqrt()
    # d/|d| in both places: near a cusp the product of both divisions may overflow.
    bend = _mixed(kinds, numbers, q, "curvature") * v[:, None] * (along * inverse)
    return [(phi * along).sum(-1)] + [
        (phi * move + bend * (difference * inverse)).sum(-1)
        for move, difference in zip(moves, differences, strict=True)
    ]
