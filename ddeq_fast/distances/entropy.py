"""Entropy of a cloud by a kernel density estimate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddeq_fast.distances.points import real_points
from ddeq_fast.sums import backends
from ddeq_fast.sums.operators import evaluate
from ddeq_fast.sums.radial import Gaussian
from ddeq_fast.utils.validation import check_cloud, check_number

# Added to densities before their logarithm, as by the authors: it bounds the share of an isolated point.
DENSITY_FLOOR = 1e-10


def kde_entropy(x: Tensor, bandwidth: float, mask: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Entropy -mean_i log p_i of a cloud by a leave-one-out Gaussian kernel density estimate.

    p_i = 1e-10 + 1/n sum_{j != i} exp(-|x_i - x_j|^2 / (2 h^2)), not normalised by (2 pi h^2)^(d/2), which would add
    a constant.

    Args:
        x: cloud, (n, d) or (B, n, d), floating point.
        bandwidth: h > 0, in the units of the points.
        mask: boolean, (n,) or (B, n), True for real points; n counts these.
        backend: a name from `ddeq_fast.sums.backends.names()`, or "auto".

    Returns:
        (B,), or a scalar for a cloud without a batch axis; twice differentiable in x.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud, a bandwidth
            that is not positive, an unknown backend.
    """
    check_cloud("x", x)
    kernel = Gaussian(check_number("bandwidth", bandwidth))
    real = real_points("mask", mask, x)
    real = x.new_ones(x.shape[:-1]) if real is None else real
    backend = backends.check_whole("kde_entropy", backend)
    batched, dtype = x.dim() == 3, x.dtype
    if not batched:
        x, real = x[None], real[None]
    x, real = (t.to(torch.promote_types(dtype, torch.float32)) for t in (x, real))
    x = x.masked_fill(real[..., None] == 0, 0)
    n = real.sum(-1)
    surprise = -(_others(x, real, kernel, backend) / n[:, None] + DENSITY_FLOOR).log()
    value = ((surprise * real).sum(-1) / n).to(dtype)
    return value if batched else value[0]


def _others(x, v, kernel, backend):
    """sum_{j != i} v_j k(x_i, x_j), shape (B, n).

    Subtracting k(0) from the whole sum would lose what a far point gets from the others. Instead each half of a
    cloud takes the other half as sources, and so on within the halves: every pair but i = j, once.
    """
    n = x.shape[1]
    if n == 1:
        return torch.zeros_like(v)
    x, v = pad(x, (0, 0, 0, n % 2)), pad(v, (0, n % 2))
    targets, charges = (t.unflatten(1, (2, -1)) for t in (x, v))
    sources = (t.flip(1).flatten(0, 1) for t in (targets, charges))
    targets, charges = targets.flatten(0, 1), charges.flatten(0, 1)
    across, _ = evaluate(targets, *sources, kernel, backend, True, False)
    return (across + _others(targets, charges, kernel, backend)).view_as(v)[:, :n]
