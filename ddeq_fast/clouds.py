"""Padded batches of point clouds: points with weights, zero for padding; padding and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.utils.validation import check_cloud, check_integer, check_weights, values_readable


class PointClouds(NamedTuple):
    """A batch of clouds: points (B, n, d) and weights (B, n), nonnegative, zero for padding."""

    points: Tensor
    weights: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, n), True for real points."""
        return self.weights > 0

    def to(self, *args, **kwargs) -> PointClouds:
        """Both tensors on another device or in another dtype, as `Tensor.to`."""
        return PointClouds(self.points.to(*args, **kwargs), self.weights.to(*args, **kwargs))


def pad(clouds: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> PointClouds:
    """Stack clouds (n_i, d) into (B, n, d), n the largest n_i; padding is zero.

    Args:
        clouds: at least one cloud; all of one dimension, dtype and device.
        weights: (n_i,) each, nonnegative, zero for padding, or boolean masks; ones if None.

    Raises:
        TypeError, ValueError: no cloud, an empty cloud, mixed dimensions, dtypes or devices, NaN, negative weights;
        names `clouds[i]` or `weights[i]`.
    """
    for name, given in (("clouds", clouds), ("weights", weights)):
        if not isinstance(given, (list, tuple, Tensor, type(None))) or (given is None and name == "clouds"):
            raise TypeError(f"{name} must be a list of tensors, one for each cloud, got {type(given).__name__}")
        if isinstance(given, Tensor) and not given.dim():
            raise ValueError(f"{name} must be a list of tensors, one for each cloud, got a scalar")
    if not len(clouds):
        raise ValueError("clouds must hold at least one cloud, got none")
    if weights is not None and len(weights) != len(clouds):
        raise ValueError(f"weights must hold one entry a cloud, got {len(weights)} for {len(clouds)} clouds")
    charges = []
    for i, cloud in enumerate(clouds):
        if isinstance(cloud, Tensor) and cloud.dim() != 2:
            raise ValueError(f"clouds[{i}] must have shape (n, d), got {tuple(cloud.shape)}")
        check_cloud(f"clouds[{i}]", cloud, like=("clouds[0]", clouds[0]) if i else None)
        own = None if weights is None else weights[i]
        charges.append(check_weights(f"weights[{i}]", own, None, cloud, some=False))
    pad_sequence = torch.nn.utils.rnn.pad_sequence
    return PointClouds(pad_sequence(list(clouds), batch_first=True), pad_sequence(charges, batch_first=True))


def normalise(points: Tensor, weights: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
    """Each cloud with zero mean and unit standard deviation in every coordinate; padding becomes zero.

    Every point of nonzero weight counts once. A coordinate that is constant over a cloud is only centred.

    Args:
        points: (n, d) or (B, n, d).
        weights: (n,) or (B, n), zero for padding; ones if None. Boolean ones are a mask.
        mask: boolean (n,) or (B, n), False for padding.

    Raises:
        TypeError, ValueError: wrong shape or dtype, NaN, an empty or fully padded cloud.
    """
    check_cloud("points", points)
    present = check_weights("weights", weights, mask, points)[..., None] > 0
    count = present.sum(-2, keepdim=True)
    # Sums of half precision overflow; squares and sums of single precision do unless everything is of size one.
    scaled = points.to(torch.promote_types(points.dtype, torch.float32)).masked_fill(~present, 0)
    scaled, unit = _of_size_one(scaled)
    centred = (scaled - scaled.sum(-2, keepdim=True) / count).masked_fill(~present, 0)
    centred, size = _of_size_one(centred)
    variance = centred.square().sum(-2, keepdim=True) / count
    rounding = 8 * torch.finfo(scaled.dtype).eps * scaled.abs().amax(-2, keepdim=True)
    constant = variance.sqrt() * size <= rounding
    deviation = torch.where(constant, 1, variance).sqrt()
    return torch.where(constant, centred * size * unit, centred / deviation).to(points.dtype)


def _of_size_one(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points divided by a power of two a coordinate, which loses nothing, so that none exceeds 2; and these powers."""
    largest = points.detach().abs().amax(-2, keepdim=True)
    power = torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1)
    return points / power, power


def compact(points: Tensor, weights: Tensor | None = None, *, mask: Tensor | None = None) -> PointClouds:
    """Clouds (B, n, d) with weights (B, n), padding at the end, zero, and no more of it than the longest needs.

    Weights are ones if None, and a mask if they are boolean; `mask`, boolean (B, n), is False for padding.

    Raises TypeError, ValueError: bad shape or dtype, NaN, negative weights.
    """
    check_cloud("points", points)
    if points.dim() != 3:
        raise ValueError(f"points must have shape (B, n, d), got {tuple(points.shape)}")
    if not values_readable(points):
        raise ValueError(f"points must have values that can be read, got a tensor on {points.device}")
    weights = check_weights("weights", weights, mask, points, some=False)
    present = weights > 0
    order = torch.sort(present.int(), dim=1, descending=True, stable=True).indices[:, : int(present.sum(1).max())]
    weights = weights.gather(1, order)
    points = points.gather(1, order[..., None].expand(-1, -1, points.shape[2]))
    return PointClouds(points.masked_fill((weights <= 0)[..., None], 0), weights)


def spread_normal(n: int, dim: int) -> Tensor:
    """Points (n, dim), float32, that fill a standard normal distribution evenly, and so do their first ones.

    Quantiles of an additive recurrence of the generalised golden ratio (Roberts 2018).

    Raises TypeError, ValueError unless n and dim are integers of at least 1.
    """
    check_integer("n", n, high=2**31 - 1)
    check_integer("dim", dim, high=2**31 - 1)
    ratio = 2.0
    for _ in range(60):  # the root of g^(dim + 1) = g + 1
        ratio = (1 + ratio) ** (1 / (dim + 1))
    steps = ratio ** -torch.arange(1, dim + 1, dtype=torch.float64)
    places = (0.5 + torch.arange(1, n + 1, dtype=torch.float64)[:, None] * steps) % 1
    return torch.special.ndtri(places).float()
