"""Third derivatives of the sums, rarely wanted: derivatives of `tangent`, through the plain formula, in tiles.

A derivative in targets is a sum over sources, and one in sources a sum over targets: both run in tiles within the
memory budget, and in float64 where coordinates need it. Beyond, where a fourth derivative keeps a graph of all tiles,
memory grows with the pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddeq_fast.sums import naive
from ddeq_fast.sums.backends import dense
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.sums.ranges import in_range

# Of the tangent's inputs x, y, v, s, t, those that belong to targets and to sources.
TARGETS, SOURCES = (0, 3), (1, 2, 4)


def pair_bytes(d: int, itemsize: int) -> int:
    """Bytes that one pair takes: differences, what is made of them, and their gradients."""
    return max(itemsize, 4) * (16 * d + 40)


def transposed(
    kernel: RadialKernel, inputs: Sequence[Tensor], wanted: Sequence[int], gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of those inputs of the tangent whose numbers are wanted, of gradients (B, m), (B, m, d) of its results.

    inputs: x (B, m, d), y (B, n, d), v (B, n), s (B, m, d), t (B, n, d).
    """

    def sums(x, y, *rest):
        *inputs, g_u, g_f = x, y, *rest
        found: dict[int, Tensor | None] = {}
        targets, sources = [*(inputs[i] for i in TARGETS), g_u, g_f], [inputs[i] for i in SOURCES]
        for own, others, numbers in ((targets, sources, TARGETS), (sources, targets, SOURCES)):
            mine = [i for i in wanted if i in numbers]
            tile = functools.partial(_pulled, kernel, mine, own is targets)
            if mine:
                found |= zip(mine, dense.in_tiles(tile, own, others, pair_bytes), strict=True)
        return tuple(found[i] for i in wanted)

    return list(in_range(dense, sums, kernel, *inputs, *gradients))


def forward(
    kernel: RadialKernel, inputs: Sequence[Tensor], moved: Sequence[int], tangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Derivatives (B, m), (B, m, d) of the tangent as its inputs of these numbers move along tangents."""

    def sums(x, y, *rest):
        inputs, tangents = (x, y, *rest[:3]), dict(zip(moved, rest[3:], strict=True))
        targets, sources = (
            [inputs[i] for i in numbers] + [tangents[i] for i in numbers if i in tangents]
            for numbers in (TARGETS, SOURCES)
        )
        return dense.in_tiles(functools.partial(_pushed, kernel, moved), targets, sources, pair_bytes)

    return in_range(dense, sums, kernel, *inputs, *tangents)


def _pull(kernel: RadialKernel, inputs: Sequence[Tensor], wanted: Sequence[int]) -> Callable:
    """(g_u, g_f) -> gradients of the tangent's inputs of these numbers, outright."""
    fixed = dict(enumerate(inputs))

    def formula(*chosen):
        x, y, v, s, t = (fixed | dict(zip(wanted, chosen, strict=True))).values()
        return naive.tangent(x, y, v, s, t, kernel)

    # Each input counts by itself, though one may have been computed from another.
    return torch.func.vjp(formula, *(inputs[i] for i in wanted))[1]


def _pulled(kernel, wanted, of_targets, own, others):
    (x, s, g_u, g_f), (y, v, t) = (own, others) if of_targets else (others, own)
    return _pull(kernel, (x, y, v, s, t), wanted)((g_u, g_f))


def _pushed(kernel, moved, targets, sources):
    """The transpose of the transpose, for forward mode does not nest outside of `torch.func`."""
    (x, s, *ahead), (y, v, t, *behind) = targets, sources
    moves = dict(zip([i for i in TARGETS if i in moved], ahead, strict=True))
    moves |= zip([i for i in SOURCES if i in moved], behind, strict=True)
    nothing = torch.zeros_like(x[..., 0]), torch.zeros_like(x)
    with torch.enable_grad():
        (found,) = torch.func.vjp(_pull(kernel, (x, y, v, s, t), moved), nothing)[1](tuple(moves[i] for i in moved))
    return found
