"""PointMLP (Ma et al., ICLR 2022, "Rethinking network design and local geometry in point cloud"), classifier.

Stages on fewer and fewer points: the neighbours of points that lie far apart, their features normalised by an affine
map, go through residual perceptrons, before and after the maximum over each group. Three stages in place of four, with
bottlenecks as in the lighter of the published sizes. Batch norms are of real points alone; the head, which has one
vector a cloud, has a layer norm.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.baselines.grouping import clouds, farthest, neighbours, picked, rows
from bench.baselines.pointnet import largest, perceptron, real
from ddeq_fast.models import Classification

SQUEEZE = 4  # a hidden layer of a residual block has one in so many units


class Residual(nn.Module):
    """relu(x + norm(V relu(norm(W x)))): (n, width) -> (n, width)."""

    def __init__(self, width: int):
        super().__init__()
        hidden = max(1, width // SQUEEZE)
        self.inner = nn.Sequential(
            perceptron(width, hidden), nn.Linear(hidden, width, bias=False), nn.BatchNorm1d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


class Stage(nn.Module):
    """Features (total, a) of points (B, n, d) to (fewer, b) of one in `ratio` of these.

    A group of neighbours j of a point i has the features alpha (f_j - f_i) / sigma (their equation 3), beside f_i,
    where sigma is the deviation of all f_j - f_i in the cloud. Their shift beta would be taken away by the batch norm.
    """

    def __init__(self, width_in: int, width_out: int, k: int, ratio: int):
        super().__init__()
        self.k, self.ratio = k, ratio
        self.alpha = nn.Parameter(torch.ones(width_in))
        self.before = nn.Sequential(perceptron(2 * width_in, width_out), Residual(width_out))
        self.after = Residual(width_out)

    def forward(self, features: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index, kept = farthest(x, mask, self.ratio)
        fewer = picked(x, index)
        near = neighbours(fewer, kept, x, mask, self.k)
        centre = features[rows(mask).gather(1, index)[kept]][:, None]
        offset = near.real(near.of(features) - centre)
        centre = near.real(centre.expand(-1, near.index.shape[1], -1))
        cloud = clouds(kept)[:, None].expand_as(near.mask)[near.mask]
        # A cloud of one point has no deviation, and a root no slope at zero.
        sigma = (variance(offset, cloud, len(x)) + 1e-5).sqrt()[cloud, None]
        group = torch.cat((self.alpha * offset / sigma, centre), 1)
        return self.after(largest(self.before(group), near.mask)), fewer, kept


def variance(values: Tensor, cloud: Tensor, number: int) -> Tensor:
    """Variance (number,) of all the values (n, c) of each cloud."""

    def mean(rows: Tensor) -> Tensor:
        sums = rows.new_zeros(number).index_add(0, cloud, rows.mean(1))
        return sums / cloud.bincount(minlength=number)

    return mean((values - mean(values)[cloud, None]).square())


class PointMLP(nn.Module):
    """Classifier of clouds.

    Args:
        dim: of the points.
        classes: classes to tell apart.
        width: of the first layer; every stage doubles it.
        ratio: points of a stage for each one of the next.
        k: points of a group.
        dropout: share of hidden units that is dropped between pooling and the class scores, in training.
    """

    def __init__(self, dim: int, classes: int, width: int = 24, ratio: int = 2, k: int = 16, dropout: float = 0.5):
        super().__init__()
        widths = (width, 2 * width, 4 * width, 8 * width)
        self.start = perceptron(dim, width)
        self.stages = nn.ModuleList(Stage(a, b, k, ratio) for a, b in pairwise(widths))
        self.head = nn.Sequential(
            perceptron(8 * width, 4 * width, norm=nn.LayerNorm), nn.Dropout(dropout), nn.Linear(4 * width, classes)
        )

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Classification:
        """Class scores of clouds x (B, n, dim); weights (B, n), zero for padding. Errors as of `DDEQ.forward`."""
        mask = real(x, weights)
        features = self.start(x[mask])
        for stage in self.stages:
            features, x, mask = stage(features, x, mask)
        return Classification(self.head(largest(features, mask)), None)
