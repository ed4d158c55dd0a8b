"""Entropy of a cloud by a kernel density estimate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddeq_fast.sums import backends
from ddeq_fast.sums.measures import measure
from ddeq_fast.sums.operators import evaluate
from ddeq_fast.sums.radial import Gaussian, RadialKernel
from ddeq_fast.utils.validation import check_number

# Added to densities before their logarithm, as by the authors: it bounds the share of an isolated point.
DENSITY_FLOOR = 1e-10


def kde_entropy(
    x: Tensor,
    bandwidth: float,
    *,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Entropy -sum_i a_i log p_i of a cloud by a leave-one-out Gaussian kernel density estimate.

    p_i = 1e-10 + sum_{j != i} a_j exp(-|x_i - x_j|^2 / (2 h^2)), not normalised by (2 pi h^2)^(d/2), which would add
    a constant. The weights a have mass one: 1/n each, if none are given.

    Args:
        x: cloud, (n, d) or (B, n, d), floating point.
        bandwidth: h > 0, in the units of the points.
        weights: nonnegative weights, (n,) or (B, n), normalised to mass one; uniform if None. Boolean ones are a mask.
        mask: boolean, same shape, True for real points; padding has no influence and no gradient.
        backend: a name from `ddeq_fast.sums.backends.names()`, or "auto".

    Returns:
        (B,), or a scalar for a cloud without a batch axis; twice differentiable in x and the weights.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud, a bandwidth
            that is not positive, an unknown backend.
    """
    kernel = Gaussian(check_number("bandwidth", bandwidth))
    cloud = measure("x", x, weights, mask, prefix="").batched().to(torch.promote_types(x.dtype, torch.float32))
    backend = backends.check_whole("kde_entropy", backend)
    mass = cloud.weights.sum(-1)
    surprise = -(_others(cloud.points, cloud.weights, kernel, backend) / mass[:, None] + DENSITY_FLOOR).log()
    value = ((surprise * cloud.weights).sum(-1) / mass).to(x.dtype)
    return value if x.dim() == 3 else value[0]


def _others(x: Tensor, v: Tensor, kernel: RadialKernel, backend: str) -> Tensor:
    """sum_{j != i} v_j k(x_i, x_j), shape (B, n).

    Subtracting k(0) from the whole sum would lose what a far point gets from the others. Instead each half of a
    cloud takes the other half as sources, and so on within the halves: every pair but i = j, once.
    """
    batch, n, d = x.shape
    if n == 1:
        return torch.zeros_like(v)
    x, v = pad(x, (0, 0, 0, n % 2)), pad(v, (0, n % 2))
    half = x.shape[1] // 2
    halves, charges = x.reshape(2 * batch, half, d), v.reshape(2 * batch, half)
    sources = halves.unflatten(0, (batch, 2)).flip(1).flatten(0, 1)
    across, _ = evaluate(
        halves, sources, charges.unflatten(0, (batch, 2)).flip(1).flatten(0, 1), kernel, backend, True, False
    )
    return (across + _others(halves, charges, kernel, backend)).reshape(batch, 2 * half)[:, :n]
