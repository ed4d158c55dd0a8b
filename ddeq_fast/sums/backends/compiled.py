"""Compiled backend: pair sums on the CPU, fused by torch.compile.

In few dimensions no matrix is formed at all, by one loop for each dimension and kind of kernel; above, see `products`.
Without a compiler the dense backend answers, after one warning.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddeq_fast.sums.backends import dense, products
from ddeq_fast.sums.backends.programs import Program, lowered, mixed, run
from ddeq_fast.sums.radial import Gaussian, Laplacian, RadialKernel, unknown
from ddeq_fast.utils import tree

MAX_DIMENSION = 1024
# Pairs and sources handed to compiled code at once: sums in single precision stay short, and if a matrix is not fused
# away after all, it stays small. With four times as many sources, sums in float32 take 10 to 20 % longer, and in two
# dimensions, on one processor, 2.6 times.
TILE = 1 << 23
SOURCES = 1 << 12
# Charges are raised to it for exponentials, unless bandwidths are so narrow that slopes might overflow.
RAISED, NARROWEST = 2.0**20, 1e-4


def unsupported(x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
    """Needs CPU tensors in single or double precision with up to 1,024 coordinates, and elementary kernels."""
    if x.device.type != "cpu":
        return f"needs tensors on the CPU, got {x.device.type}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"needs float32 or float64, got {x.dtype}"
    if x.shape[-1] > MAX_DIMENSION:
        return f"needs d <= {MAX_DIMENSION}, got d = {x.shape[-1]}"
    strange = unknown(kernel)
    return f"has no code for the kernel {strange}, which is not registered" if strange else None


def _raised(evaluate: Callable) -> Callable:
    """`evaluate(x, y, v, ...)`, with the kernel among the others, made for charges v times a power of two where all
    terms of the kernel are exponentials.

    Those of far pairs times small charges are no normal numbers, for which CPUs take up to a hundred times as long.
    """

    @functools.wraps(evaluate)
    def raised(x: Tensor, y: Tensor, v: Tensor, *others):
        terms = [term for other in others if isinstance(other, RadialKernel) for _, term in other.terms()]
        widths = [term.sigma for term in terms if isinstance(term, (Gaussian, Laplacian))]
        largest = float(v.detach().abs().max()) if v.numel() and len(widths) == len(terms) else 0.0
        if not (0 < largest < RAISED and min(widths) >= NARROWEST):
            return evaluate(x, y, v, *others)
        factor = 2.0 ** min(100, math.floor(math.log2(RAISED / largest)))
        return tuple(None if part is None else part.div_(factor) for part in evaluate(x, y, v * factor, *others))

    return raised


@_raised
def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
    """See `Backend.evaluate`."""
    if x.shape[2] > dense.DIFFERENCE_DIMENSION:
        sums = products.evaluate(x, y, v, kernel, potential, field)
        return sums or dense.evaluate(x, y, v, kernel, potential, field)
    found = _summed(_sums, kernel, (x,), (y,), v, (potential, field))
    if found is None:
        return dense.evaluate(x, y, v, kernel, potential, field)
    u = found.pop(0) if potential else None
    return u, (torch.stack(found, -1) if field else None)


@_raised
def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel):
    """See `Backend.tangent`."""
    if x.shape[2] > dense.DIFFERENCE_DIMENSION:
        return products.tangent(x, y, v, s, t, kernel) or dense.tangent(x, y, v, s, t, kernel)
    found = _summed(_tangent, kernel, (x, s), (y, t), v, (True, True))
    if found is None:
        return dense.tangent(x, y, v, s, t, kernel)
    return found[0], torch.stack(found[1:], -1)


@torch.no_grad()
def _summed(formula: Callable, kernel: RadialKernel, targets, sources, v: Tensor, wanted) -> list[Tensor] | None:
    """Sums (B, m) over tiles of sources and targets; None without a compiler."""
    (batch, m, d), n = targets[0].shape, v.shape[1]
    kinds, numbers = lowered(kernel, v)
    rows = max(1, TILE // (batch * min(SOURCES, n)))
    columns = [_columns(source) for source in (*sources, v[..., None])]
    blocks = []
    for i in range(0, m, rows):
        block = [_columns(target[:, i : i + rows]) for target in targets]
        total: list[Tensor] = []
        for j in range(0, n, SOURCES):
            tile = [[coordinate[:, j : j + SOURCES] for coordinate in column] for column in columns]
            ones = batch == 1, min(rows, m - i) == 1, min(SOURCES, n - j) == 1
            sums = run(Program(formula, d, kinds, wanted, v.dtype, ones), block, tile, numbers)
            if sums is None:
                return None
            total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        blocks.append(total)
    return tree.joined(blocks, 1)


def _columns(points: Tensor) -> list[Tensor]:
    """Coordinates of points (B, n, d) as d contiguous tensors (B, n)."""
    return [coordinate.contiguous() for coordinate in points.detach().unbind(-1)]


def _differences(x, y):
    return [a[:, :, None] - b[:, None] for a, b in zip(x, y, strict=True)]


def _sum_of_products(a, b):
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total = total + a[i] * b[i]
    return total


def _sums(kinds, wanted, targets, sources, numbers):
    """[u, f_1 ... f_d], what is wanted of it, each (B, m)."""
    x, (y, (v,)) = targets[0], sources
    differences = _differences(x, y)
    q = _sum_of_products(differences, differences)
    found = []
    if wanted[0]:
        found.append((mixed(kinds, numbers, q, "k") * v[:, None]).sum(-1))
    if wanted[1]:
        w = mixed(kinds, numbers, q, "phi") * v[:, None]
        found += [(w * difference).sum(-1) for difference in differences]
    return found


def _tangent(kinds, wanted, targets, sources, numbers):
    """[du, df_1 ... df_d], each (B, m)."""
    (x, s), (y, t, (v,)) = targets, sources
    differences, moves = _differences(x, y), _differences(s, t)
    q, along = _sum_of_products(differences, differences), _sum_of_products(differences, moves)
    phi = mixed(kinds, numbers, q, "phi") * v[:, None]
    inverse = torch.where(q > 0, q, torch.ones_like(q)).rsqrt()
    # d/|d| in both places: near a cusp the product of both divisions may overflow.
    bend = mixed(kinds, numbers, q, "curvature") * v[:, None] * (along * inverse)
    return [(phi * along).sum(-1)] + [
        (phi * move + bend * (difference * inverse)).sum(-1)
        for move, difference in zip(moves, differences, strict=True)
    ]
