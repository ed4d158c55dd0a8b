"""What a data set is: labelled clouds of different sizes, served in padded batches in a reproducible order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.clouds import PointClouds, pad
from ddeq_fast.utils.validation import (
    FLOATS,
    check_charges,
    check_cloud,
    check_integer,
    check_nonnegative,
    check_some_left,
)

_WINDOW = 16  # batches that are sorted by size together: more waste less, fewer mix better


class Batch(NamedTuple):
    """clouds: `PointClouds` of B clouds; labels: (B,) int64; indices: (B,), their places in the split."""

    clouds: PointClouds
    labels: Tensor
    indices: Tensor


def _check_clouds(points: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Raises for the first cloud that is none; a split has many, so that all are looked at together first."""
    if all(isinstance(entry, Tensor) and entry.device == points[0].device for entry in (*points, *weights)):
        kinds = {(cloud.dim(), cloud.shape[-1:], cloud.dtype, cloud.numel() > 0) for cloud in points}
        alike = all(
            charges.shape == cloud.shape[:1] and charges.dtype == cloud.dtype
            for cloud, charges in zip(points, weights, strict=True)
        )
        kind = (2, points[0].shape[-1:], points[0].dtype, True)
        if kinds == {kind} and alike and points[0].dtype in FLOATS:
            charges = torch.cat(tuple(weights))
            if bool(
                torch.isfinite(torch.cat(tuple(points))).all() & torch.isfinite(charges).all() & (charges > 0).all()
            ):
                return
    for i, (cloud, charges) in enumerate(zip(points, weights, strict=True)):
        if check_cloud(f"points[{i}]", cloud, like=("points[0]", points[0]) if i else None).dim() != 2:
            raise ValueError(f"points[{i}] must have shape (n, d), got {tuple(cloud.shape)}")
        if charges is None:
            raise TypeError(f"weights[{i}] must be a torch.Tensor, got None")
        check_nonnegative(f"weights[{i}]", check_charges(f"weights[{i}]", charges, cloud))
        check_some_left(f"weights[{i}]", (charges > 0).any())


@dataclass(frozen=True)
class Split:
    """Labelled clouds.

    points: one tensor (n_i, d) a cloud, float32; weights: (n_i,) each, nonnegative; labels: (N,) int64, nonnegative.

    Raises:
        TypeError, ValueError: not equally many or none, another shape or dtype, an empty cloud, mixed dimensions or
        dtypes, NaN, negative weights or labels, a cloud without weight; names the place.
    """

    points: Sequence[Tensor]
    weights: Sequence[Tensor]
    labels: Tensor

    def __post_init__(self):
        sizes = len(self.points), len(self.weights), len(self.labels)
        if len(set(sizes)) > 1 or not sizes[0]:
            raise ValueError(f"points, weights and labels must be equally many and not none, got {sizes}")
        if not isinstance(self.labels, Tensor) or self.labels.dtype != torch.int64:
            raise TypeError(f"labels must be an int64 tensor, got {getattr(self.labels, 'dtype', type(self.labels))}")
        if self.labels.dim() != 1 or int(self.labels.min()) < 0:
            raise ValueError(f"labels must have shape (N,) and be nonnegative, got {tuple(self.labels.shape)}")
        _check_clouds(self.points, self.weights)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Batch:
        """The clouds at these indices (B,), int64 from 0 to N - 1, padded together."""
        if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.dim() != 1:
            raise TypeError(f"indices must be an int64 tensor (B,), got {indices!r:.60}")
        if not len(indices) or not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise ValueError(f"indices must lie from 0 to {len(self) - 1}, got {indices.tolist()[:8]}")
        places = indices.tolist()
        clouds = pad([self.points[i] for i in places], [self.weights[i] for i in places])
        return Batch(clouds, self.labels[indices], indices)

    def order(
        self, batch_size: int, seed: int | None = None, epoch: int = 0, by_length: bool = False
    ) -> tuple[Tensor, ...]:
        """Indices of the batches of one epoch: shuffled by (seed, epoch) alone, or in file order if seed is None.

        Args:
            batch_size: clouds a batch; all but one batch are full.
            seed, epoch: of the order.
            by_length: clouds of similar size together, so that little is padded: the shuffled clouds are sorted by
                size inside windows of 16 batches, and the batches then shuffled; all are sorted if seed is None. Where
                size tells of the label, batches are less mixed than without.
        """
        check_integer("batch_size", batch_size)
        check_integer("epoch", epoch, low=0)
        draw = None if seed is None else generator(seed, epoch)
        order = torch.arange(len(self)) if draw is None else torch.randperm(len(self), generator=draw)
        if not by_length:
            return order.split(batch_size)
        sizes = torch.tensor([len(self.points[i]) for i in order.tolist()])
        if draw is None:
            return order[sizes.argsort(stable=True)].split(batch_size)
        windows = zip(order.split(_WINDOW * batch_size), sizes.split(_WINDOW * batch_size), strict=True)
        batches = [batch for part, size in windows for batch in part[size.argsort(stable=True)].split(batch_size)]
        return tuple(batches[i] for i in torch.randperm(len(batches), generator=draw).tolist())

    def batches(
        self, batch_size: int, seed: int | None = None, epoch: int = 0, by_length: bool = False
    ) -> Iterator[Batch]:
        """The batches of one epoch, in that order; one may be smaller."""
        return map(self.batch, self.order(batch_size, seed, epoch, by_length))


@dataclass(frozen=True)
class Dataset:
    """Training and test split of one classification task. dim: of the points; classes: how many labels.

    Raises TypeError, ValueError: points of another dimension, a label that is no class.
    """

    name: str
    dim: int
    classes: int
    train: Split
    test: Split

    def __post_init__(self):
        check_integer("dim", self.dim)
        check_integer("classes", self.classes)
        for name, split in (("train", self.train), ("test", self.test)):
            if split.points[0].shape[1] != self.dim:
                raise ValueError(f"{name} must hold points in dimension {self.dim}, got {split.points[0].shape[1]}")
            if int(split.labels.max()) >= self.classes:
                raise ValueError(f"{name} must have labels below {self.classes}, got {int(split.labels.max())}")


def generator(*seeds: int) -> torch.Generator:
    """A generator that depends on all the seeds (nonnegative integers); different tuples give unrelated streams."""
    mixed = 0
    for seed in seeds:  # splitmix64, a seed at a time: neighbouring seeds must not give neighbouring states
        mixed = (mixed ^ check_integer("seed", seed, low=0)) + 0x9E3779B97F4A7C15
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % (1 << 64)
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % (1 << 64)
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed % (1 << 63))
