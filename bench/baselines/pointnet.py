"""PointNet (Qi et al., CVPR 2017, "PointNet: deep learning on point sets"), classifier.

A perceptron shared by all points, the maximum over the points, a perceptron on that. Smaller than published, and
without the T-nets that align clouds. Batch norms are of real points alone; the head, which has one vector a cloud, has
a layer norm, so that a batch of one cloud can be trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ddeq_fast.models import Classification
from ddeq_fast.networks import Descriptors
from ddeq_fast.utils.validation import check_cloud, check_weights


def perceptron(*widths: int, norm: type[nn.Module] = nn.BatchNorm1d) -> nn.Sequential:
    """Linear, norm and ReLU from each width to the next: (n, widths[0]) -> (n, widths[-1])."""
    bias = norm is not nn.BatchNorm1d  # which would take it away again
    return nn.Sequential(*(layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b, bias), norm(b), nn.ReLU())))


def real(x: Tensor, weights: Tensor | None) -> Tensor:
    """(B, n), True for the real points of clouds (B, n, d), with weights as `ddeq_fast.models.DDEQ` takes them.

    The baselines have no use for a weight but whether it is zero.
    """
    return check_weights("weights", weights, None, check_cloud("x", x)) > 0


def largest(features: Tensor, mask: Tensor) -> Tensor:
    """Maximum (..., c) over the real points in a mask (..., n), of features (total, c) of all these."""
    if bool(mask.all()):
        return features.view(*mask.shape, -1).max(-2).values
    padded = features.new_full((*mask.shape, features.shape[1]), -float("inf"))
    return padded.masked_scatter(mask[..., None], features).amax(-2)


class PointNet(nn.Module):
    """Classifier of clouds.

    Args:
        dim: of the points.
        classes: classes to tell apart.
        width: of the first layer; others are multiples of it.
        dropout: share of hidden units that is dropped between the maximum and the class scores, in training.
        bandwidths: of descriptors of the points, as a `TransportMap` sees those of X; none are published.
    """

    def __init__(self, dim: int, classes: int, width: int = 64, dropout: float = 0.3, bandwidths: Sequence[float] = ()):
        super().__init__()
        self.descriptors = Descriptors(bandwidths)
        self.shared = perceptron(dim + self.descriptors.width, width, 2 * width, 6 * width)
        self.head = nn.Sequential(
            perceptron(6 * width, 3 * width, norm=nn.LayerNorm), nn.Dropout(dropout), nn.Linear(3 * width, classes)
        )

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Classification:
        """Class scores of clouds x (B, n, dim); weights (B, n), zero for padding. Errors as of `DDEQ.forward`."""
        mask = real(x, weights)
        described = self.descriptors(x, mask.to(x.dtype))
        return Classification(self.head(largest(self.shared(described[mask]), mask)), None)
