"""What a data set is: labelled clouds of different sizes, served in padded batches in a reproducible order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.clouds import PointClouds, pad
from ddeq_fast.utils.validation import (
    FLOATS,
    check_charges,
    check_cloud,
    check_flag,
    check_integer,
    check_nonnegative,
    check_number,
    check_pair,
    check_some_left,
    check_weights,
)

# Share of each class to test on, of data without parts.
TEST_SHARE = 0.2
_WINDOW = 16  # batches that are sorted by size together: more waste less, fewer mix better


class Batch(NamedTuple):
    """clouds: `PointClouds` of B clouds; labels: (B,) int64; indices: (B,), their places in the split."""

    clouds: PointClouds
    labels: Tensor
    indices: Tensor


def _check_clouds(points: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Raises for the first cloud that is none; a split has many, so that all are looked at together first."""
    if _all_alike(points, weights) and _all_finite(points, weights):
        return
    for i, (cloud, charges) in enumerate(zip(points, weights, strict=True)):
        if check_cloud(f"points[{i}]", cloud, like=("points[0]", points[0]) if i else None).dim() != 2:
            raise ValueError(f"points[{i}] must have shape (n, d), got {tuple(cloud.shape)}")
        if charges is None:
            raise TypeError(f"weights[{i}] must be a torch.Tensor, got None")
        check_nonnegative(f"weights[{i}]", check_charges(f"weights[{i}]", charges, cloud))
        check_some_left(f"weights[{i}]", (charges > 0).any())


def _all_alike(points: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether all are clouds (n_i, d) that are not empty, with weights (n_i,), of one dimension, dtype and device."""
    if not all(isinstance(entry, Tensor) and entry.device == points[0].device for entry in (*points, *weights)):
        return False
    dim, dtype = points[0].shape[-1:], points[0].dtype
    return dtype in FLOATS and all(
        cloud.dim() == 2
        and cloud.numel()
        and (cloud.shape[-1:], cloud.dtype) == (dim, dtype)
        and (charges.shape, charges.dtype) == (cloud.shape[:1], dtype)
        for cloud, charges in zip(points, weights, strict=True)
    )


def _all_finite(points: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether no point is NaN or infinite, and all weights are positive."""
    charges = torch.cat(tuple(weights))
    finite = torch.isfinite(torch.cat(tuple(points))).all() & torch.isfinite(charges).all()
    return bool(finite & (charges > 0).all())


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """N labelled clouds.

    Args:
        points: one tensor (n_i, d) a cloud, floating-point.
        weights: (n_i,) each, of the same dtype, nonnegative, zero for padding.
        labels: (N,) int64, nonnegative.

    Raises:
        TypeError, ValueError: not equally many or none, another shape or dtype, an empty cloud, mixed dimensions or
        dtypes, NaN, negative weights or labels, a cloud without weight; names the place.
    """

    points: Sequence[Tensor]
    weights: Sequence[Tensor]
    labels: Tensor

    def __post_init__(self) -> None:
        for name in ("points", "weights"):
            if not isinstance(getattr(self, name), Sequence) or isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a sequence of tensors, got {type(getattr(self, name)).__name__}")
        if not isinstance(self.labels, Tensor) or self.labels.dtype != torch.int64:
            raise TypeError(f"labels must be an int64 tensor, got {getattr(self.labels, 'dtype', type(self.labels))}")
        if self.labels.dim() != 1:
            raise ValueError(f"labels must have shape (N,), got {tuple(self.labels.shape)}")
        sizes = len(self.points), len(self.weights), len(self.labels)
        if len(set(sizes)) > 1 or not sizes[0]:
            raise ValueError(f"points, weights and labels must be equally many and not none, got {sizes}")
        if int(self.labels.min()) < 0:
            raise ValueError(f"labels must be nonnegative, got a minimum of {int(self.labels.min())}")
        _check_clouds(self.points, self.weights)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        sizes = [len(cloud) for cloud in self.points]
        return f"<{len(self)} clouds of {min(sizes)} to {max(sizes)} points in dimension {self.points[0].shape[1]}>"

    def batch(self, indices: Tensor) -> Batch:
        """The clouds at these indices (B,), int64 from 0 to N - 1, padded together.

        Raises TypeError, ValueError for indices of another dtype or shape, for none, and for places that are none.
        """
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

        Returns:
            int64 tensors, (batch_size,) but for one that may be smaller.

        Raises:
            TypeError, ValueError: a size, seed or epoch out of range.
        """
        batch_size = min(check_integer("batch_size", batch_size), len(self))
        check_integer("epoch", epoch, low=0)
        check_flag("by_length", by_length)
        draw = None if seed is None else generator(check_integer("seed", seed, low=0), epoch)
        order = torch.arange(len(self)) if draw is None else torch.randperm(len(self), generator=draw)
        if not by_length:
            return order.split(batch_size)
        sizes = torch.tensor([len(self.points[i]) for i in order.tolist()])
        if draw is None:
            return order[sizes.argsort(stable=True)].split(batch_size)
        windows = zip(order.split(_WINDOW * batch_size), sizes.split(_WINDOW * batch_size), strict=True)
        batches = [batch for part, size in windows for batch in part[size.argsort(stable=True)].split(batch_size)]
        return tuple(batches[i] for i in torch.randperm(len(batches), generator=draw).tolist())


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test split of one classification task.

    Args:
        name: of the data.
        dim: of the points.
        classes: how many labels there are; they count from 0.
        train, test: clouds and labels.
        names: of the classes, if they have any.

    Raises:
        TypeError, ValueError: splits that are none, points of another dimension, a label that is no class, names that
        are no tuple of as many different strings.
    """

    name: str
    dim: int
    classes: int
    train: Split
    test: Split
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {type(self.name).__name__}")
        check_integer("dim", self.dim)
        check_integer("classes", self.classes)
        if self.names is not None:
            if not isinstance(self.names, tuple) or not all(isinstance(name, str) for name in self.names):
                raise TypeError(f"names must be a tuple of strings, got {self.names!r:.60}")
            if len({*self.names}) != self.classes or len(self.names) != self.classes:
                raise ValueError(f"names must be {self.classes} different ones, got {self.names!r:.60}")
        for name, split in (("train", self.train), ("test", self.test)):
            if not isinstance(split, Split):
                raise TypeError(f"{name} must be a Split, got {type(split).__name__}")
            if split.points[0].shape[1] != self.dim:
                raise ValueError(f"{name} must hold points in dimension {self.dim}, got {split.points[0].shape[1]}")
            if int(split.labels.max()) >= self.classes:
                raise ValueError(f"{name} must have labels below {self.classes}, got {int(split.labels.max())}")


def held_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """A mask (N,) of samples to test on: that share of each class, drawn at random, rounded to whole ones.

    At least one of a class is held out, and at least one left to train on; of a class of one it is left.

    Raises TypeError, ValueError: a share outside (0, 1), a bad seed.
    """
    check_number("test_share", share, high=1.0)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        places = (labels == label).nonzero()[:, 0]
        number = min(max(1, round(share * len(places))), len(places) - 1)
        chosen[places[torch.randperm(len(places), generator=generator(seed, label))[:number]]] = True
    return chosen


def generator(*seeds: int) -> torch.Generator:
    """A generator that depends on all the seeds; different tuples give unrelated streams.

    Raises TypeError, ValueError naming the place of a seed that is no nonnegative integer.
    """
    mixed = 0
    # splitmix64, a seed at a time: neighbouring seeds must not give neighbouring states
    for i, seed in enumerate(seeds):
        mixed = (mixed ^ check_integer(f"seeds[{i}]", seed, low=0)) + 0x9E3779B97F4A7C15
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % (1 << 64)
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % (1 << 64)
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed % (1 << 63))


def check_batch(name: str, clouds: PointClouds, least: int = 1, some: bool = True) -> PointClouds:
    """Points (B, n, d), d at least `least`, and weights (B, n) as they are to be used.

    Raises TypeError or ValueError naming what is of another shape or dtype, NaN, a negative weight, or, if `some`, a
    cloud without any.
    """
    points, weights = check_pair(name, clouds, "(points, weights)")
    if check_cloud(f"{name}.points", points).dim() != 3 or points.shape[2] < least:
        dims = f", d at least {least}" if least > 1 else ""
        raise ValueError(f"{name}.points must have shape (B, n, d){dims}, got {tuple(points.shape)}")
    return PointClouds(points, check_weights(f"{name}.weights", weights, None, points, some=some))


def check_generator(name: str, draw: torch.Generator) -> None:
    """Raises TypeError or ValueError unless `draw` is a generator on the CPU."""
    if not isinstance(draw, torch.Generator):
        raise TypeError(f"{name} must be a torch.Generator, got {type(draw).__name__}")
    if draw.device.type != "cpu":
        raise ValueError(f"{name} must be a generator on the CPU, got one on {draw.device}")
