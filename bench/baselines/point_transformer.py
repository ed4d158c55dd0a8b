"""Point transformer (Zhao et al., ICCV 2021, "Point transformer"), classifier.

Vector attention among the nearest neighbours of every point, with a learned encoding of their relative position, in
stages on fewer and fewer points. Three stages in place of five, narrower than published, and with layer norms in place
of batch norms, so that padding and the other clouds of a batch have no influence. Where distances are equal, as between
pixels, the order of the points decides which of them are neighbours or survive.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.baselines.pointnet import largest, perceptron, real
from ddeq_fast.models import Classification


class Neighbours(NamedTuple):
    """index: (B, m, k), of the nearest points; mask: (B, m, k), False where a cloud has fewer than k points."""

    index: Tensor
    mask: Tensor

    def of(self, features: Tensor) -> Tensor:
        """(B, m, k, c): the features (B, n, c) of the neighbours."""
        index = self.index.flatten(1)[..., None].expand(-1, -1, features.shape[2])
        return features.gather(1, index).view(*self.index.shape, -1)


def neighbours(x: Tensor, points: Tensor, mask: Tensor, k: int) -> Neighbours:
    """The k real ones among points (B, n, d) that are nearest to each of x (B, m, d)."""
    distances = torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist")
    found = distances.masked_fill(~mask[:, None], float("inf")).topk(min(k, points.shape[1]), largest=False)
    return Neighbours(found.indices, found.values.isfinite())


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
        self.into, self.out = perceptron(width, width), nn.Linear(width, width)
        self.phi, self.psi, self.alpha = (nn.Linear(width, width) for _ in range(3))
        self.theta = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width))
        self.gamma = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.between, self.norm = nn.Sequential(nn.LayerNorm(width), nn.ReLU()), nn.LayerNorm(width)

    def forward(self, features: Tensor, points: Tensor, near: Neighbours) -> Tensor:
        x = self.into(features)
        delta = self.theta(points[:, :, None] - near.of(points))
        scores = self.gamma(self.phi(x)[:, :, None] - near.of(self.psi(x)) + delta)
        shares = scores.masked_fill(~near.mask[..., None], -float("inf")).softmax(2)
        attended = (shares * (near.of(self.alpha(x)) + delta)).sum(2)
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
        self.head = nn.Sequential(perceptron(widths[-1], widths[-1]), nn.Linear(widths[-1], classes))

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Classification:
        """Class scores of clouds x (B, n, dim); weights (B, n), zero for padding. Errors as of `DDEQ.forward`."""
        mask = real(x, weights)
        features = self.stages[0](self.start(x), x, neighbours(x, x, mask, self.k))
        for down, stage in zip(self.down, self.stages[1:], strict=True):
            index, kept = farthest(x, mask, self.ratio)
            fewer = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
            near = neighbours(fewer, x, mask, self.k)
            features, x, mask = largest(near.of(down(features)), near.mask), fewer, kept
            features = stage(features, x, neighbours(x, x, mask, self.k))
        mean = (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return Classification(self.head(mean), None)
