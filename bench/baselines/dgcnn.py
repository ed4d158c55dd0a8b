"""DGCNN (Wang et al., ACM Trans. Graph. 2019, "Dynamic graph CNN for learning on point clouds"), classifier.

Every layer joins each point with those whose features are nearest to its own, so that the graph changes from layer to
layer. Narrower than published, and its head has layer norms, one vector a cloud being too few for batch norms; those of
edges are of real points alone.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.baselines.grouping import Neighbours, means, neighbours, padded
from bench.baselines.pointnet import largest, perceptron, real
from ddeq_fast.models import Classification


class EdgeConv(nn.Module):
    """y_i = max_j act(norm(A x_i + B (x_j - x_i))) over the neighbours j of i (their equation 8)."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.own = nn.Linear(width_in, width_out, bias=False)
        self.between = nn.Linear(width_in, width_out, bias=False)
        self.norm = nn.BatchNorm1d(width_out)

    def forward(self, features: Tensor, near: Neighbours) -> Tensor:
        other = self.between(features)  # linear: once a point, not once an edge
        edges = (self.own(features) - other)[:, None] + near.of(other)
        return largest(nn.functional.leaky_relu(self.norm(near.real(edges)), 0.2), near.mask)


class DGCNN(nn.Module):
    """Classifier of clouds.

    Args:
        dim: of the points.
        classes: classes to tell apart.
        width: of the first layer; others are multiples of it.
        k: neighbours, a point itself among them.
        dropout: share of hidden units that is dropped between pooling and the class scores, in training.
    """

    def __init__(self, dim: int, classes: int, width: int = 32, k: int = 16, dropout: float = 0.5):
        super().__init__()
        self.k = k
        widths = (dim, width, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(EdgeConv(a, b) for a, b in pairwise(widths))
        self.embed = perceptron(sum(widths[1:]), 8 * width)
        self.head = nn.Sequential(
            perceptron(16 * width, 4 * width, norm=nn.LayerNorm), nn.Dropout(dropout), nn.Linear(4 * width, classes)
        )

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Classification:
        """Class scores of clouds x (B, n, dim); weights (B, n), zero for padding. Errors as of `DDEQ.forward`."""
        mask = real(x, weights)
        features, found = x[mask], []
        for layer in self.layers:
            place = padded(features, mask)
            features = layer(features, neighbours(place, mask, place, mask, self.k))
            found.append(features)
        features = self.embed(torch.cat(found, 1))
        return Classification(self.head(torch.cat((largest(features, mask), means(features, mask)), 1)), None)
