"""Chamfer distance between clouds, in the forms in which papers report it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ddeq_fast.distances.points import mean, resolve, to_nearest
from ddeq_fast.sums.measures import pair
from ddeq_fast.utils.validation import check_choice


class Convention(NamedTuple):
    """factor * (there + back) of squared distances or of their roots, averaged over a cloud or summed."""

    squared: bool
    summed: bool = False
    factor: float = 1.0


CONVENTIONS = {
    "l1": Convention(squared=False),
    "l1-half": Convention(squared=False, factor=0.5),
    "l2": Convention(squared=True),
    "l2-sum": Convention(squared=True, summed=True),
}


def chamfer(
    x: Tensor,
    y: Tensor,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    convention: str = "l1",
    backend: str = "auto",
) -> Tensor:
    """Chamfer distance: from each point to the nearest one of the other cloud, averaged, both ways added.

    Papers give that name to different numbers. With d_i = min_j |x_i - y_j| and e_j = min_i |x_i - y_j|:

        "l1"       mean_i d_i + mean_j e_j            Yuan et al., 2018 (PCN), eq. 1
        "l1-half"  (mean_i d_i + mean_j e_j) / 2      evaluation code of PCN; CD-l1 of Yu et al., 2021 (PoinTr)
        "l2"       mean_i d_i^2 + mean_j e_j^2        CD-l2 of PoinTr; Completion3D (Tchapmi et al., 2019)
        "l2-sum"   sum_i d_i^2 + sum_j e_j^2          Fan et al., 2017

    Tables often show a thousand or ten thousand times that.

    Args:
        x, y: clouds, (m, d) and (n, d), or batched (B, m, d) and (B, n, d), floating point; same dtype and device.
        x_weights, y_weights: nonnegative weights of the means or sums, (m,) or (B, m) and so on; uniform if None. A
            point of no weight is padding, of no influence. Boolean ones are a mask.
        x_mask, y_mask: boolean, same shape, True for real points; padding has no influence and no gradient.
        convention: a name of the table.
        backend: as in `nearest`.

    Returns:
        (B,), or a scalar for clouds without a batch axis; differentiable in x, y and the weights. The gradient of a
        distance is zero where the points coincide.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud, an unknown
            convention, an unknown backend or one that cannot run here.
    """
    form = CONVENTIONS[check_choice("convention", convention, CONVENTIONS)]
    mu, rho = (over.batched() for over in pair(x, y, x_weights, y_weights, x_mask, y_mask))
    backend = resolve(backend, x)
    parts = []
    for over, other in ((mu, rho), (rho, mu)):
        away = to_nearest(over, other, backend, squared=form.squared)
        parts.append((over.weights.to(away.dtype) * away).sum(-1) if form.summed else mean(away, over))
    value = (form.factor * (parts[0] + parts[1])).to(x.dtype)
    return value if x.dim() == 3 else value[0]
