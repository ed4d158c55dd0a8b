"""Partial clouds: which points of a cloud are observed when clusters or a random share of it are removed.

A removal is called with clouds and a generator and returns the observed points as a mask, so that a completion knows
the partial cloud and the whole one:

    removal = Clusters(count=2, radius=0.6)
    observed = removal(clouds, generator(seed, step))  # (B, n)
    partial = compact(clouds.points, clouds.weights * observed)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq_fast.clouds import PointClouds
from ddeq_fast.data.dataset import check_batch, check_generator
from ddeq_fast.utils.validation import check_cloud, check_integer, check_number


class _Removal:
    """Masks of batches, and of single clouds as batches of one."""

    def __call__(self, clouds: PointClouds | Tensor, draw: torch.Generator) -> Tensor:
        """Observed points: (B, n) bool for clouds (B, n, d) with weights, (n,) for a cloud (n, d).

        At least one point of every cloud is observed, padding never. The randomness comes from `draw`, on the CPU; it
        does not depend on how far the batch is padded.

        Raises:
            TypeError, ValueError: bad shape or dtype, NaN, an empty or fully padded cloud, no generator.
        """
        check_generator("draw", draw)
        if isinstance(clouds, Tensor):
            if check_cloud("clouds", clouds).dim() != 2:
                raise ValueError(f"clouds without weights must be one, (n, d), got {tuple(clouds.shape)}")
            return self(PointClouds(clouds[None], clouds.new_ones(1, len(clouds))), draw)[0]
        points, weights = check_batch("clouds", clouds)
        return self._observed(points, weights > 0, draw)

    def _observed(self, points: Tensor, real: Tensor, draw: torch.Generator) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Clusters(_Removal):
    """Removes all points within a distance of some points of the cloud (Geuter et al. 2025, section 5).

    Args:
        count: how many centres, drawn with replacement.
        radius: in the units of the points; the paper's is 0.6 for clouds of unit deviation.
    """

    count: int = 2
    radius: float = 0.6

    def __post_init__(self) -> None:
        check_integer("count", self.count)
        check_number("radius", self.radius)

    def _observed(self, points: Tensor, real: Tensor, draw: torch.Generator) -> Tensor:
        points = points.to(torch.promote_types(points.dtype, torch.float32))  # half precision cannot hold the squares
        share = torch.rand(len(points), self.count, generator=draw, dtype=torch.float64).to(points.device)
        number = (share * real.sum(1, keepdim=True)).long()  # the centre is that real point of its cloud
        place = torch.sort(~real, dim=1, stable=True).indices.gather(1, number)
        centres = points.gather(1, place[..., None].expand(-1, -1, points.shape[2]))
        squares = (points[:, None] - centres[:, :, None]).square().sum(-1).amin(1)
        # Pixels lie at exactly the radius from each other: rounding must not decide for some and against others.
        observed = real & (squares > (self.radius * (1 + 1e-5)) ** 2)
        farthest = torch.where(real, squares, -1).argmax(1, keepdim=True)
        spare = torch.zeros_like(real).scatter(1, farthest, True)
        return torch.where(observed.any(1, keepdim=True), observed, spare)


@dataclass(frozen=True)
class Fraction(_Removal):
    """Removes a random share of the points, rounded to whole ones.

    Args:
        share: inside (0, 1).
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        check_number("share", self.share, high=1.0)

    def _observed(self, points: Tensor, real: Tensor, draw: torch.Generator) -> Tensor:
        keys = torch.full(real.shape, 2.0, dtype=torch.float64, device=real.device)
        keys[real] = torch.rand(int(real.sum()), generator=draw, dtype=torch.float64).to(real.device)
        rank = keys.argsort(1).argsort(1)
        number = real.sum(1, keepdim=True)
        removed = (self.share * number.double()).round().long().minimum(number - 1)
        return real & (rank >= removed)


REMOVALS: dict[str, type[_Removal]] = {"clusters": Clusters, "fraction": Fraction}
