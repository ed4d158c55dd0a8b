"""Point transformer (Zhao et al., ICCV 2021, "Point transformer"), classifier.

Vector attention among the nearest neighbours of every point, with a learned encoding of their relative position, in
stages on fewer and fewer points. Three stages in place of five, narrower than published. Batch norms are of real points
alone; the head, which has one vector a cloud, has a layer norm.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.baselines.grouping import Neighbours, farthest, means, neighbours, picked
from bench.baselines.pointnet import largest, perceptron, real
from ddeq_fast.models import Classification


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
            fewer = picked(x, index)
            near = neighbours(fewer, kept, x, mask, self.k)
            features = largest(down(features)[near.index[near.mask]], near.mask)
            x, mask = fewer, kept
            features = stage(features, x[mask], neighbours(x, mask, x, mask, self.k))
        return Classification(self.head(means(features, mask)), None)
