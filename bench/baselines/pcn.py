"""PCN (Yuan et al., 3DV 2018, "PCN: point completion network"), completion of partial clouds.

Two stacked PointNets make a code of the partial cloud, a perceptron makes coarse points of the code, and small grids
are folded around each of these. Smaller than published, and trained on the fine points alone, where they add a loss on
the coarse ones; which loss is the training loop's affair.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from bench.baselines.pointnet import largest, perceptron, real
from ddeq_fast.clouds import compact
from ddeq_fast.models import Completion, missing_points

GRID, STEP = 2, 0.1  # points on the side of a folded grid, and between neighbours on it


def completed(x: Tensor, weights: Tensor | None, made: Tensor, growth: float, keep: bool = True) -> Completion:
    """Clouds x (B, n, dim), as far as their weights are not zero, with as many of the points `made` (B, m, dim) as
    `ddeq_fast.models.Completer` adds; without those of x, and as many more, unless `keep`."""
    mask = real(x, weights)
    number = missing_points(mask, growth) + (0 if keep else mask.sum(1))
    new = torch.arange(made.shape[1], device=x.device) < number[:, None]
    made = made * new[..., None]
    if not keep:
        return Completion(made, new.to(x.dtype), torch.zeros_like(new), None)
    kept = compact(x, mask.to(x.dtype) if weights is None else weights)
    observed = torch.cat((kept.mask, torch.zeros_like(new)), 1)
    return Completion(torch.cat((kept.points, made), 1), torch.cat((kept.weights, new.to(x.dtype)), 1), observed, None)


class PCN(nn.Module):
    """Completes clouds with as many points as `ddeq_fast.models.Completer` would.

    Args:
        dim: of the points.
        most: points of the largest completed cloud; larger ones get too few.
        growth: points of a completed cloud for each point of the partial one.
        keep: True keeps the points of the partial cloud and makes the missing ones, as `Completer` does; False makes
            the whole cloud, as published.
        width: of the first perceptron; others are multiples of it.
    """

    def __init__(self, dim: int, most: int, growth: float = 1.275, keep: bool = True, width: int = 64):
        super().__init__()
        self.growth, self.keep, self.dim = growth, keep, dim
        made = most - int(most / growth) if keep else most
        self.coarse_points = max(1, math.ceil(made / GRID**2))
        code = 4 * width
        plain = partial(perceptron, norm=nn.Identity)
        self.first = nn.Sequential(plain(dim, width), nn.Linear(width, 2 * width))
        self.second = nn.Sequential(plain(4 * width, 2 * width), nn.Linear(2 * width, code))
        self.coarse = nn.Sequential(plain(code, 2 * width), nn.Linear(2 * width, self.coarse_points * dim))
        self.fold = nn.Sequential(plain(code + dim + 2, width, width), nn.Linear(width, dim))
        side = STEP * (torch.arange(GRID) - (GRID - 1) / 2)
        self.register_buffer("grid", torch.cartesian_prod(side, side), persistent=False)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """The code (B, c) of clouds x (B, n, dim)."""
        features = self.first(x[mask])
        whole = largest(features, mask).repeat_interleave(mask.sum(1), 0)
        return largest(self.second(torch.cat((features, whole), 1)), mask)

    def decode(self, code: Tensor) -> Tensor:
        """Fine points (B, GRID^2 times coarse ones, dim), first one of each coarse point, then another of each..."""
        coarse = self.coarse(code).view(len(code), 1, -1, self.dim)
        shape = (len(code), len(self.grid), self.coarse_points)
        parts = (coarse, self.grid[:, None], code[:, None, None])
        folded = self.fold(torch.cat([part.expand(*shape, -1) for part in parts], 3))
        return (coarse + folded).flatten(1, 2)

    def forward(self, x: Tensor, weights: Tensor | None = None, *, noise: Tensor | None = None) -> Completion:
        """Complete clouds x (B, n, dim); weights (B, n), zero for padding; noise, of which `Completer` makes its
        points, is of no use here. Errors as of `DDEQ.forward`."""
        mask = real(x, weights)
        made = self.decode(self.encode(x, mask))
        return completed(x, weights, made, self.growth, self.keep)
