"""What a data set is: labelled clouds of different sizes, served in padded batches in a reproducible order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.clouds import PointClouds, pad
from ddeq_fast.validation import check_integer


class Batch(NamedTuple):
    """clouds: `PointClouds` of B clouds; labels: (B,) int64; indices: (B,), their places in the split."""

    clouds: PointClouds
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Split:
    """Labelled clouds.

    points: one tensor (n_i, d) a cloud, float32; weights: (n_i,) each; labels: (N,) int64.
    """

    points: Sequence[Tensor]
    weights: Sequence[Tensor]
    labels: Tensor

    def __post_init__(self):
        sizes = len(self.points), len(self.weights), len(self.labels)
        if len(set(sizes)) > 1 or not sizes[0]:
            raise ValueError(f"points, weights and labels must be equally many and not none, got {sizes}")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Batch:
        """The clouds at these indices (B,), padded together."""
        places = indices.tolist()
        clouds = pad([self.points[i] for i in places], [self.weights[i] for i in places])
        return Batch(clouds, self.labels[indices], indices)

    def order(self, batch_size: int, seed: int | None = None, epoch: int = 0) -> tuple[Tensor, ...]:
        """Indices of the batches of one epoch: shuffled by (seed, epoch) alone, or in file order if seed is None."""
        check_integer("batch_size", batch_size)
        if seed is None:
            return torch.arange(len(self)).split(batch_size)
        return torch.randperm(len(self), generator=generator(seed, epoch)).split(batch_size)

    def batches(self, batch_size: int, seed: int | None = None, epoch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, in that order; the last may be smaller."""
        return map(self.batch, self.order(batch_size, seed, epoch))


@dataclass(frozen=True)
class Dataset:
    """Training and test split of one classification task. dim: of the points; classes: how many labels."""

    name: str
    dim: int
    classes: int
    train: Split
    test: Split


def generator(*seeds: int) -> torch.Generator:
    """A generator that depends on all the seeds (nonnegative integers); different tuples give unrelated streams."""
    mixed = 0
    for seed in seeds:  # splitmix64, a seed at a time: neighbouring seeds must not give neighbouring states
        mixed = (mixed ^ check_integer("seed", seed, low=0)) + 0x9E3779B97F4A7C15
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % (1 << 64)
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % (1 << 64)
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed % (1 << 63))
