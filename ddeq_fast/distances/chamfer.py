"""Chamfer distance between clouds."""

from __future__ import annotations

from torch import Tensor

from ddeq_fast.distances.points import real_points, resolve, search
from ddeq_fast.sums.mmd import positive_root
from ddeq_fast.utils.validation import check_cloud


def chamfer(
    x: Tensor,
    y: Tensor,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    squared: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Chamfer distance mean_i min_j |x_i - y_j| + mean_j min_i |x_i - y_j| (Fan et al., 2017, with means).

    Args:
        x, y: clouds, (m, d) and (n, d), or batched (B, m, d) and (B, n, d); same dtype and device.
        x_mask, y_mask: boolean, (m,) or (B, m) and so on, True for real points; padding has no influence.
        squared: sum squared distances instead.
        backend: as for `ddeq_fast.distances.points.nearest`.

    Returns:
        (B,), or a scalar for clouds without a batch axis; differentiable in x and y. The gradient of a distance
        is zero where the points coincide.

    Raises:
        TypeError, ValueError: as `ddeq_fast.distances.points.nearest`.
    """
    check_cloud("x", x)
    check_cloud("y", y, like=("x", x))
    real_x, real_y = real_points("x_mask", x_mask, x), real_points("y_mask", y_mask, y)
    backend = resolve(backend, x)
    batched = x.dim() == 3
    if not batched:
        x, y = x[None], y[None]
        real_x, real_y = (None if real is None else real[None] for real in (real_x, real_y))
    x, y = (t if real is None else t.masked_fill(~real[..., None], 0) for t, real in ((x, real_x), (y, real_y)))
    there = search(x, y, real_y, backend).squared_distance
    back = search(y, x, real_x, backend).squared_distance
    if not squared:
        there, back = positive_root(there), positive_root(back)
    value = (_mean(there, real_x) + _mean(back, real_y)).to(x.dtype)
    return value if batched else value[0]


def _mean(values, real):
    """Mean over the last axis of the values that are real."""
    return values.mean(-1) if real is None else values.masked_fill(~real, 0).sum(-1) / real.sum(-1)
