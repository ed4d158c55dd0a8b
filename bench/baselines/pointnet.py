"""PointNet (Qi et al., CVPR 2017, "PointNet: deep learning on point sets"), classifier.

A perceptron shared by all points, the maximum over the points, a perceptron on that. Smaller than published, without
the T-nets that align clouds, and with layer norms in place of batch norms, so that padding and the other clouds of a
batch have no influence.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ddeq_fast.models import Classification
from ddeq_fast.validation import check_cloud, check_weights


def perceptron(*widths: int) -> nn.Sequential:
    """Linear, layer norm and ReLU from each width to the next: (..., widths[0]) -> (..., widths[-1])."""
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU())]
    return nn.Sequential(*layers)


def real(x: Tensor, weights: Tensor | None) -> Tensor:
    """(B, n), True for the real points of clouds (B, n, d), with weights as `ddeq_fast.models.DDEQ` takes them.

    The baselines have no use for a weight but whether it is zero.
    """
    return check_weights("x", weights, None, check_cloud("x", x)) > 0


def largest(features: Tensor, mask: Tensor) -> Tensor:
    """Maximum of features (..., n, c) over the n points that a mask (..., n) calls real: (..., c)."""
    return features.masked_fill(~mask[..., None], -float("inf")).amax(-2)


class PointNet(nn.Module):
    """Classifier of clouds.

    Args:
        dim: of the points.
        classes: classes to tell apart.
        width: of the first layer; others are multiples of it.
        dropout: share of hidden units that is dropped between the maximum and the class scores, in training.
    """

    def __init__(self, dim: int, classes: int, width: int = 64, dropout: float = 0.3):
        super().__init__()
        self.shared = perceptron(dim, width, 2 * width, 6 * width)
        self.head = nn.Sequential(perceptron(6 * width, 3 * width), nn.Dropout(dropout), nn.Linear(3 * width, classes))

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Classification:
        """Class scores of clouds x (B, n, dim); weights (B, n), zero for padding. Errors as of `DDEQ.forward`."""
        mask = real(x, weights)
        return Classification(self.head(largest(self.shared(x), mask)), None)
