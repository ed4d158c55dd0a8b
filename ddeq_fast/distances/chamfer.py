"""Chamfer distance between clouds."""

from __future__ import annotations

from torch import Tensor

from ddeq_fast.distances.points import resolve, search
from ddeq_fast.sums.measures import Measure, measure
from ddeq_fast.sums.mmd import positive_root
from ddeq_fast.utils.validation import check_flag


def chamfer(
    x: Tensor,
    y: Tensor,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    squared: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Chamfer distance mean_i min_j |x_i - y_j| + mean_j min_i |x_i - y_j| (Fan et al., 2017, with means).

    Args:
        x, y: clouds, (m, d) and (n, d), or batched (B, m, d) and (B, n, d), floating point; same dtype and device.
        x_weights, y_weights: nonnegative weights of the means, (m,) or (B, m) and so on; uniform if None. A point of no
            weight is padding, of no influence. Boolean ones are a mask.
        x_mask, y_mask: boolean, same shape, True for real points; padding has no influence and no gradient.
        squared: sum squared distances instead.
        backend: "dense", "triton", or "auto": Triton on a GPU.

    Returns:
        (B,), or a scalar for clouds without a batch axis; differentiable in x, y and the weights. The gradient of a
        distance is zero where the points coincide.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud, an unknown
            backend or one that cannot run here.
    """
    check_flag("squared", squared)
    mu = measure("x", x, x_weights, x_mask).batched()
    rho = measure("y", y, y_weights, y_mask, like=("x", x)).batched()
    backend = resolve(backend, x)
    there = search(mu.points, rho.points, rho.real, backend).squared_distance
    back = search(rho.points, mu.points, mu.real, backend).squared_distance
    if not squared:
        there, back = positive_root(there), positive_root(back)
    value = (_mean(there, mu) + _mean(back, rho)).to(x.dtype)
    return value if x.dim() == 3 else value[0]


def _mean(values: Tensor, over: Measure) -> Tensor:
    """Weighted mean over the last axis."""
    if over.uniform:
        return values.mean(-1)
    weights = over.weights.to(values.dtype)
    return (weights * values).sum(-1) / weights.sum(-1)
