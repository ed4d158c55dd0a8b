"""Weighted clouds: points, weights and masks as users give them, checked in one place for all that take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq_fast.utils.validation import check_cloud, check_weights


@dataclass(frozen=True)
class Measure:
    """sum_i a_i delta_{x_i}, not normalised.

    Attributes:
        points: (n, d) or (B, n, d), zero where a mask says padding: a far value there would overflow, and a zero weight
            does not undo that.
        weights: a, (n,) or (B, n), nonnegative, zero for padding.
        uniform: neither weights nor a mask were given.
    """

    points: Tensor
    weights: Tensor
    uniform: bool

    @property
    def real(self) -> Tensor | None:
        """Which points have a weight, boolean (n,) or (B, n); None if all have the same."""
        return None if self.uniform else self.weights > 0

    def batched(self) -> Measure:
        """With a batch axis, of one if there is none."""
        if self.points.dim() == 3:
            return self
        return Measure(self.points[None], self.weights[None], self.uniform)

    def to(self, dtype: torch.dtype) -> Measure:
        """In another dtype."""
        return Measure(self.points.to(dtype), self.weights.to(dtype), self.uniform)


def measure(
    name: str,
    points: Tensor,
    weights: Tensor | None,
    mask: Tensor | None,
    *,
    like: tuple[str, Tensor] | None = None,
    prefix: str | None = None,
    some: bool = True,
) -> Measure:
    """The measure on the cloud called `name`, of arguments called `prefix` ("x_" for "x" if None) weights and mask.

    `like` names another cloud whose batch, dimension, dtype and device it must share. Weights and mask may both be
    given; boolean weights are a mask.

    Raises TypeError or ValueError for anything else, and if a cloud has no mass, though not then if `some` is false.
    """
    check_cloud(name, points, like=like)
    prefix = f"{name}_" if prefix is None else prefix
    found = check_weights(f"{prefix}weights", weights, mask, points, some=some)
    for given in (weights, mask):
        if given is not None and given.dtype == torch.bool:
            points = without_padding(points, given.reshape(points.shape[:-1]))
    return Measure(points, found, weights is None and mask is None)


def pair(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    x_mask: Tensor | None,
    y_mask: Tensor | None,
    *,
    some: bool = True,
) -> tuple[Measure, Measure]:
    """The measures on two clouds that go together, of the arguments of these names; see `measure`."""
    return (
        measure("x", x, x_weights, x_mask, some=some),
        measure("y", y, y_weights, y_mask, like=("x", x), some=some),
    )


def without_padding(points: Tensor, real: Tensor | None) -> Tensor:
    """Points (..., n, d) with zeros where they are not `real`, boolean (..., n); themselves if that is None."""
    return points if real is None else points.masked_fill(~real[..., None], 0)
