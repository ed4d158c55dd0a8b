"""What a data set is: labelled clouds of different sizes, served in padded batches in a reproducible order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.clouds import PointClouds, pad
from ddeq_fast.validation import check_integer

_WINDOW = 16  # batches that are sorted by size together: more waste less, fewer mix better


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
