"""Errors of sums, found by exact ones at some of the targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.sums.radial import RadialKernel


class Error(NamedTuple):
    """Root mean squares (B,) over targets, float64: of errors, of exact sums, and of those of charges |v|."""

    off: Tensor
    size: Tensor
    uncancelled: Tensor


def errors(
    exact: Callable[..., Sequence[Tensor | None]],
    kernel: RadialKernel,
    clouds: tuple[Tensor, Tensor, Tensor],
    moves: tuple[Tensor, ...],
    found: Sequence[Tensor | None],
    number: int,
) -> list[Error]:
    """Errors of each sum found that is not None, at `number` targets drawn with replacement, at all if they are fewer.

    exact: `evaluate` or, with moves s (B, m, d) and t (B, n, d), `tangent` of an exact backend. clouds: x, y and v.
    """
    (x, y, v), m = clouds, clouds[0].shape[1]
    at = torch.arange(m)
    if number < m:
        at = torch.randint(m, (number,), generator=torch.Generator().manual_seed(1))
    at = at.to(x.device)
    inputs = [x[:, at], y, v, *(move if i else move[:, at] for i, move in enumerate(moves))]
    inputs = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in inputs]
    wanted = () if moves else tuple(part is not None for part in found)
    right = exact(*inputs, kernel, *wanted)
    inputs[2] = inputs[2].abs()
    whole = right if bool((inputs[2] == v).all()) else exact(*inputs, kernel, *wanted)
    return [
        Error(mean(a[:, at] - b), mean(b), mean(c))
        for a, b, c in zip(found, right, whole, strict=True)
        if a is not None and b is not None and c is not None
    ]


def mean(values: Tensor) -> Tensor:
    """Root mean square (B,), float64, over targets, of numbers (B, m) or vectors (B, m, d)."""
    return values.flatten(1).double().square().sum(1).div(values.shape[1]).sqrt()
