"""Point transformer (Zhao et al., ICCV 2021, "Point transformer"), classifier.

Vector attention among the nearest neighbours of every point, with a learned encoding of their relative position, in
stages on fewer and fewer points. Three stages in place of five, narrower than published. Batch norms are of real points
alone; the head, which has one vector a cloud, has a layer norm. Where distances are equal, as between pixels, the order
of the points decides which of them are neighbours or survive.

Features of all real points of a batch lie one below another, (total, c), in the order of the padded points (B, n, d).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.baselines.pointnet import largest, perceptron, real
from ddeq_fast.models import Classification


class Neighbours(NamedTuple):
    """index: (total, k), rows of the nearest points; mask: (total, k), False where a cloud has fewer than k points."""

    index: Tensor
    mask: Tensor

    def of(self, features: Tensor) -> Tensor:
        """(total, k, c): the features of the neighbours."""
        return features.index_select(0, self.index.flatten()).view(*self.index.shape, -1)


def rows(mask: Tensor) -> Tensor:
    """(B, n): where the features of each real point lie."""
    return mask.flatten().cumsum(0).view(mask.shape) - 1


def neighbours(x: Tensor, x_mask: Tensor, points: Tensor, mask: Tensor, k: int) -> Neighbours:
    """The k real ones among points (B, n, d) that are nearest to each real one of x (B, m, d)."""
    distances = torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist")
    found = distances.masked_fill(~mask[:, None], float("inf")).topk(min(k, points.shape[1]), largest=False)
    index = rows(mask).gather(1, found.indices.flatten(1)).view(found.indices.shape)
    return Neighbours(index[x_mask].clamp_min(0), found.values[x_mask].isfinite())


def farthest(points: Tensor, mask: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """One in `ratio` of the points of each cloud, each as far as can be from those before: indices and mask (B, m).

    The first is the one farthest from the mean.
    """
    count = (mask.sum(1) + ratio - 1) // ratio
    mean = (points * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    place = (points - mean).square().sum(-1).masked_fill(~mask, -1).argmax(1)
    least, chosen = torch.where(mask, float("inf"), -1.0).to(points.dtype), []
    for _ in range(int(count.max())):
        chosen.append(place)
        last = points.gather(1, place[:, None, None].expand(-1, 1, points.shape[2]))
        least = torch.minimum(least, (points - last).square().sum(-1))
        place = least.argmax(1)
    return torch.stack(chosen, 1), torch.arange(len(chosen), device=points.device) < count[:, None]


class VectorAttention(nn.Module):
    """y_i = sum_j softmax_j(gamma(phi(x_i) - psi(x_j) + delta_ij)) * (alpha(x_j) + delta_ij), channel by channel, over
    the neighbours j of i; delta_ij = theta(p_i - p_j) (their equations 3 and 4), inside a residual block."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.into, self.between = perceptron(width, width), nn.Sequential(nn.BatchNorm1d(width), nn.ReLU())
        self.phi, self.psi = nn.Linear(width, width), nn.Linear(width, width)
        # Without a bias where what follows, a norm or softmax, would take it away again.
        self.alpha, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.theta = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width))
        self.gamma = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width, bias=False))
        self.norm = nn.BatchNorm1d(width)

    def forward(self, features: Tensor, points: Tensor, near: Neighbours) -> Tensor:
        x = self.into(features)
        delta = self.theta(points[:, None] - near.of(points))
        scores = self.gamma(self.phi(x)[:, None] - near.of(self.psi(x)) + delta)
        shares = scores.masked_fill(~near.mask[..., None], -float("inf")).softmax(1)
        attended = (shares * (near.of(self.alpha(x)) + delta)).sum(1)
        return torch.relu(self.norm(features + self.out(self.between(attended))))


class PointTransformer(nn.Module):
    """Classifier of clouds.

    Args:
        dim: of the points.
        classes: classes to tell apart.
        width: of the first stage; the others have twice and three times as much.
        ratio: points of a stage for each one of the next.
        k: neighbours.
    """

    def __init__(self, dim: int, classes: int, width: int = 32, ratio: int = 4, k: int = 8):
        super().__init__()
        self.ratio, self.k = ratio, k
        widths = (width, 2 * width, 3 * width)
        self.start = perceptron(dim, widths[0])
        self.down = nn.ModuleList(perceptron(a, b) for a, b in pairwise(widths))
        self.stages = nn.ModuleList(VectorAttention(dim, width) for width in widths)
        self.head = nn.Sequential(perceptron(widths[-1], widths[-1], norm=nn.LayerNorm), nn.Linear(widths[-1], classes))

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Classification:
        """Class scores of clouds x (B, n, dim); weights (B, n), zero for padding. Errors as of `DDEQ.forward`."""
        mask = real(x, weights)
        features = self.stages[0](self.start(x[mask]), x[mask], neighbours(x, mask, x, mask, self.k))
        for down, stage in zip(self.down, self.stages[1:], strict=True):
            index, kept = farthest(x, mask, self.ratio)
            fewer = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
            near = neighbours(fewer, kept, x, mask, self.k)
            features = largest(down(features)[near.index[near.mask]], near.mask)
            x, mask = fewer, kept
            features = stage(features, x[mask], neighbours(x, mask, x, mask, self.k))
        cloud = torch.arange(len(x), device=x.device).repeat_interleave(mask.sum(1))
        total = features.new_zeros(len(x), features.shape[1]).index_add(0, cloud, features)
        return Classification(self.head(total / mask.sum(1, keepdim=True)), None)
