"""Metrics of completed and generated clouds beside the Chamfer distance: F-score, fidelity, density-aware Chamfer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.distances.points import mean, resolve, search, to_nearest
from ddeq_fast.sums.measures import Measure, measure, pair
from ddeq_fast.sums.mmd import normalised, positive_root
from ddeq_fast.utils.validation import check_choice, check_number


class FScore(NamedTuple):
    """Harmonic mean of precision and recall, and these, each (B,) or a scalar, between zero and one."""

    score: Tensor
    precision: Tensor
    recall: Tensor


def f_score(
    x: Tensor,
    y: Tensor,
    threshold: float,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    backend: str = "auto",
) -> FScore:
    """F-score of a cloud x against the true one y (Knapitsch et al., 2017; Tatarchenko et al., 2019).

    Precision is the share of x that lies nearer than the threshold to a point of y, recall the share of y that lies
    nearer than it to a point of x; the score is 2 precision recall / (precision + recall), zero if both are.

    Args:
        x, y: clouds, (m, d) and (n, d), or batched (B, m, d) and (B, n, d), floating point; same dtype and device.
        threshold: distance > 0 in the units of the points; Tatarchenko et al. take one hundredth of the side of the
            bounding box.
        x_weights, y_weights: nonnegative weights, (m,) or (B, m) and so on: shares are of weight. Boolean ones are a
            mask.
        x_mask, y_mask: boolean, same shape, True for real points; padding has no influence.
        backend: as in `nearest`.

    Returns:
        `FScore`, of the dtype of x, without a graph: shares are steps, whose derivative is zero.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud, a threshold
            that is not positive, an unknown backend or one that cannot run here.
    """
    threshold = check_number("threshold", threshold)
    mu, rho = (over.batched() for over in pair(x, y, x_weights, y_weights, x_mask, y_mask))
    backend = resolve(backend, x)
    with torch.no_grad():
        precision, recall = (
            mean((to_nearest(over, other, backend, squared=False) < threshold).to(torch.float64), over)
            for over, other in ((mu, rho), (rho, mu))
        )
        total = precision + recall
        score = 2 * precision * recall / torch.where(total > 0, total, 1)
    parts = (part.detach().to(x.dtype) for part in (score, precision, recall))
    return FScore(*(part if x.dim() == 3 else part[0] for part in parts))


def fidelity(
    partial: Tensor,
    completed: Tensor,
    *,
    partial_weights: Tensor | None = None,
    completed_weights: Tensor | None = None,
    partial_mask: Tensor | None = None,
    completed_mask: Tensor | None = None,
    convention: str = "l1",
    backend: str = "auto",
) -> Tensor:
    """How well a completion keeps what was observed: mean distance from an observed point to the nearest completed one.

    Yuan et al., 2018 (PCN), section 5.4. Zero if the completion contains the partial cloud.

    Args:
        partial, completed: clouds, (m, d) and (n, d), or batched (B, m, d) and (B, n, d), floating point; same dtype
            and device.
        partial_weights, completed_weights: nonnegative weights, (m,) or (B, m) and so on: of the mean, and of the
            other cloud only which points are there at all. Boolean ones are a mask.
        partial_mask, completed_mask: boolean, same shape, True for real points.
        convention: "l1", distances as in the paper, or "l2", their squares.
        backend: as in `nearest`.

    Returns:
        (B,), or a scalar for clouds without a batch axis; differentiable in the clouds and in partial_weights. The
        distance of each point is the root of `nearest`'s.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud, an unknown
            convention, an unknown backend or one that cannot run here.
    """
    squared = check_choice("convention", convention, ("l1", "l2")) == "l2"
    mu = measure("partial", partial, partial_weights, partial_mask).batched()
    rho = measure("completed", completed, completed_weights, completed_mask, like=("partial", partial)).batched()
    value = mean(to_nearest(mu, rho, resolve(backend, partial), squared=squared), mu).to(partial.dtype)
    return value if partial.dim() == 3 else value[0]


def density_aware_chamfer(
    x: Tensor,
    y: Tensor,
    *,
    alpha: float = 1000.0,
    convention: str = "l2",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Density-aware Chamfer distance, between zero and one (Wu et al., 2021).

        1/2 [ sum_i a_i (1 - min(1, b_j / A_j) e^(-alpha c_i)) + the same from y to x ],    j nearest to i,

    with weights a of x and b of y that have mass one, the cost c_i of x_i and its nearest point y_j, and A_j the mass
    of all points of x whose nearest is y_j: where many crowd around one point, they share it. For equally many
    points of equal weight b_j / A_j is one over their number, as in the paper. For clouds of m and n points it is
    m / n times that, here never above one; the published code lacks this bound, and can turn negative.

    Args:
        x, y: clouds, (m, d) and (n, d), or batched (B, m, d) and (B, n, d), floating point; same dtype and device.
        alpha: > 0, in the inverse units of c. That of the published code, the default, is for shapes of unit size.
        convention: "l2", c = |x_i - y_j|^2 as in the published code, or "l1", c = |x_i - y_j| as in the paper's text.
        x_weights, y_weights: nonnegative weights, (m,) or (B, m) and so on, normalised to mass one; uniform if None.
            Boolean ones are a mask.
        x_mask, y_mask: boolean, same shape, True for real points; padding has no influence and no gradient.
        backend: as in `nearest`.

    Returns:
        (B,), or a scalar for clouds without a batch axis; differentiable in x, y and the weights, but where the
        nearest point changes.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud, an alpha that
            is not positive, an unknown convention, an unknown backend or one that cannot run here.
    """
    alpha = check_number("alpha", alpha)
    squared = check_choice("convention", convention, ("l1", "l2")) == "l2"
    mu, rho = (over.batched() for over in pair(x, y, x_weights, y_weights, x_mask, y_mask))
    backend = resolve(backend, x)
    value = (_crowding(mu, rho, alpha, squared, backend) + _crowding(rho, mu, alpha, squared, backend)) / 2
    value = value.to(x.dtype)
    return value if x.dim() == 3 else value[0]


def _crowding(mu: Measure, rho: Measure, alpha: float, squared: bool, backend: str) -> Tensor:
    """sum_i a_i (1 - min(1, b_j / A_j) e^(-alpha c_i)), (B,)."""
    q, index = search(mu.points, rho.points, rho.real, backend)
    a, b = normalised(mu.weights.to(q.dtype)), normalised(rho.weights.to(q.dtype))
    crowd = torch.zeros_like(b).scatter_add(1, index, a).gather(1, index)
    # Nearest to padding alone there is no mass at all.
    share = (b.gather(1, index) / torch.where(crowd > 0, crowd, 1)).clamp(max=1)
    likeness = (-alpha * (q if squared else positive_root(q))).exp()
    return (a * (1 - share * likeness)).sum(-1)
