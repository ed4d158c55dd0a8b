"""Compiled backend: pair sums of low dimension on the CPU, fused by torch.compile so that no matrix is formed.

Compiled once for each dimension and kind of kernel: shapes and bandwidths are arguments. Needs a C++ compiler; without
one the dense backend answers, after one warning.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ddeq_fast.backends import dense
from ddeq_fast.radial import KNOWN, RadialKernel, Riesz

MAX_DIMENSION = 8
# Pairs and sources handed to compiled code at once: sums in single precision stay short, and if a matrix is not fused
# away after all, it stays small.
TILE = 1 << 23
SOURCES = 1 << 14


def unsupported(x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
    """Needs CPU tensors in single or double precision with few coordinates, and elementary kernels."""
    if x.device.type != "cpu":
        return f"needs tensors on the CPU, got {x.device.type}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"needs float32 or float64, got {x.dtype}"
    if x.shape[-1] > MAX_DIMENSION:
        return f"needs d <= {MAX_DIMENSION}, got d = {x.shape[-1]}"
    unknown = [type(term).__name__ for _, term in kernel.terms() if type(term) not in KNOWN]
    return f"has no code for the kernel {', '.join(unknown)}" if unknown else None


def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
    """See `Backend.evaluate`."""
    found = _summed("sums", kernel, (x,), (y,), v, (potential, field))
    if found is None:
        return dense.evaluate(x, y, v, kernel, potential, field)
    u, f = found[:1] if potential else (), found[1 if potential else 0 :]
    return (u[0] if potential else None), (torch.stack(f, -1) if field else None)


def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel):
    """See `Backend.tangent`."""
    found = _summed("tangent", kernel, (x, s), (y, t), v, (True, True))
    if found is None:
        return dense.tangent(x, y, v, s, t, kernel)
    return found[0], torch.stack(found[1:], -1)


@torch.no_grad()
def _summed(op: str, kernel: RadialKernel, targets, sources, v: Tensor, wanted) -> list[Tensor] | None:
    """Sums (B, m) over tiles of sources and targets; None without a compiler."""
    x = targets[0]
    shapes = tuple(_shape(term) for _, term in kernel.terms())
    select = functools.partial(_program, op, x.shape[-1], shapes, wanted, x.dtype)
    # Python floats would be compiled in; a tensor is an argument.
    numbers = x.new_tensor([(weight, _scale(term)) for weight, term in kernel.terms()])
    rows = max(1, TILE // (x.shape[0] * min(SOURCES, v.shape[1])))
    columns = [_columns(source) for source in (*sources, v[..., None])]
    parts = []
    for i in range(0, x.shape[1], rows):
        block = [_columns(target[:, i : i + rows]) for target in targets]
        total = None
        for j in range(0, v.shape[1], SOURCES):
            tile = [[coordinate[:, j : j + SOURCES] for coordinate in column] for column in columns]
            try:
                sums = select(_ones(block[0][0], tile[0][0]))(block, tile, numbers)
            except torch._dynamo.exc.TorchDynamoException as error:
                _warn_once(str(error).splitlines()[0])
                return None
            total = sums if total is None else [a + b for a, b in zip(total, sums, strict=True)]
        parts.append(total)
    return parts[0] if len(parts) == 1 else [torch.cat(part, 1) for part in zip(*parts, strict=True)]


def _columns(points: Tensor) -> list[Tensor]:
    """Coordinates of points (B, n, d) as d contiguous tensors (B, n)."""
    return [coordinate.contiguous() for coordinate in points.detach().unbind(-1)]


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"the compiled backend falls back to dense: {reason}", RuntimeWarning, stacklevel=5)


def _shape(term: RadialKernel) -> RadialKernel:
    """The kernel at bandwidth one, which selects the code; a Riesz kernel's exponent is part of it."""
    return type(term)(1.0) if hasattr(term, "sigma") else term


def _scale(term: RadialKernel) -> float:
    """Squared distances are multiplied by this to make up for it."""
    return term.sigma**-2 if hasattr(term, "sigma") else 1.0


def _ones(x: Tensor, y: Tensor) -> tuple[bool, bool, bool]:
    """Which of batch, targets x (B, m) and sources y (B, n) are one: sizes that are compiled in."""
    return x.shape[0] == 1, x.shape[1] == 1, y.shape[1] == 1


@functools.lru_cache(maxsize=256)
def _program(
    op: str,
    d: int,
    shapes: tuple[RadialKernel, ...],
    wanted: tuple[bool, bool],
    dtype: torch.dtype,
    ones: tuple[bool, bool, bool],
) -> Callable:
    """Compiled sums over one tile; see `_sums` and `_tangent` for what they return.

    One for each dtype and each `ones`, with which it would be compiled anew: dynamo refuses to do so too often.
    """
    code = {"sums": _sums, "tangent": _tangent}[op]

    def program(targets, sources, numbers):
        return code(d, shapes, wanted, targets, sources, numbers)

    # Dynamo counts recompilations by code object: each program gets one of its own.
    program.__code__ = program.__code__.replace(co_name=f"{op}_{d}")
    return torch.compile(program, dynamic=True, fullgraph=True)


def _differences(x, y):
    return [a[:, :, None] - b[:, None] for a, b in zip(x, y, strict=True)]


def _sum_of_products(a, b):
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total = total + a[i] * b[i]
    return total


def _mixed(shapes, numbers, q, name: str, power: int):
    """sum_m weight_m scale_m^power name_m(scale_m q): a kernel or one of its slopes, with its bandwidth."""
    total = 0
    for i, shape in enumerate(shapes):
        scale = numbers[i, 1]
        value = getattr(shape, name)(q) if isinstance(shape, Riesz) else getattr(shape, name)(q * scale) * scale**power
        total = total + numbers[i, 0] * value
    return total


def _sums(d, shapes, wanted, targets, sources, numbers):
    """[u, f_1 ... f_d], what is wanted of it, each (B, m)."""
    x, (y, (v,)) = targets[0], sources
    differences = _differences(x, y)
    q = _sum_of_products(differences, differences)
    found = []
    if wanted[0]:
        found.append((_mixed(shapes, numbers, q, "k", 0) * v[:, None]).sum(-1))
    if wanted[1]:
        w = _mixed(shapes, numbers, q, "phi", 1) * v[:, None]
        found += [(w * difference).sum(-1) for difference in differences]
    return found


def _tangent(d, shapes, wanted, targets, sources, numbers):
    """[du, df_1 ... df_d], each (B, m)."""
    (x, s), (y, t, (v,)) = targets, sources
    differences, moves = _differences(x, y), _differences(s, t)
    q, along = _sum_of_products(differences, differences), _sum_of_products(differences, moves)
    phi = _mixed(shapes, numbers, q, "phi", 1) * v[:, None]
    bend = 2 * _mixed(shapes, numbers, q, "dphi", 2) * v[:, None] * along
    return [(phi * along).sum(-1)] + [
        (phi * move + bend * difference).sum(-1) for move, difference in zip(moves, differences, strict=True)
    ]
