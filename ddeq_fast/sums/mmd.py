"""Maximum mean discrepancy between weighted clouds, its witness function and its Wasserstein gradient.

All three are the potential and field of the signed measure nu = mu - rho: concatenate the clouds and give them
the charges +a_i and -b_j. Then

    MMD^2(mu, rho) = sum_i w_i u(z_i),    d/dz_i = 2 w_i f(z_i),    d/dw_i = 2 u(z_i),

so that one pass over the pairs gives the value and both gradients (Gretton et al., 2012, eq. 2; Arbel et al.,
2019, section 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq_fast.sums import backends
from ddeq_fast.sums.fields import check_kernel, field, potential
from ddeq_fast.sums.operators import energy
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils.validation import check_cloud, check_weights

_ARGUMENTS = """

    Args:
        x, y: clouds, (n, d) and (m, d), or batched (B, n, d) and (B, m, d); same dtype and device.
        kernel: radial kernel; `Riesz(1)`, the energy distance, if None.
        x_weights, y_weights: nonnegative weights, (n,) or (B, n), normalised to mass one; uniform if None.
        x_mask, y_mask: boolean, same shape, True for real points; padding has no influence and no gradient.
        backend: a name from `ddeq_fast.sums.backends.names()`, or "auto".
"""


def squared_mmd(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Squared maximum mean discrepancy MMD^2(mu, rho) of the measures on x and y (V-statistic)."""
    z, w = _difference(x, y, x_weights, y_weights, x_mask, y_mask, backend)
    return _in_dtype_of(x, _squared(z, w, check_kernel(kernel), backend))


squared_mmd.__doc__ += (
    _ARGUMENTS
    + """
    Returns:
        (B,), or a scalar for clouds without a batch axis. Twice differentiable in x, y and the weights.
        It is a difference of sums: of near clouds rounding is left of it, which may be slightly negative. Do not
        take its root, whose value and gradient would be NaN there: `mmd_distance` is the root.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud.
    """
)


def mmd_distance(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Maximum mean discrepancy, the root of `squared_mmd`, summed in float64 so that near clouds keep their digits."""
    z, w = _difference(x, y, x_weights, y_weights, x_mask, y_mask, backend, torch.float64)
    kernel = check_kernel(kernel)
    # Processes that have different parts must agree on what is zero.
    floor = 0.0 if backends.sharded(backend) else _rounding(z.detach(), w.detach(), kernel)
    return _in_dtype_of(x, positive_root(_squared(z, w, kernel, backend), floor))


mmd_distance.__doc__ += (
    _ARGUMENTS
    + """
    Returns:
        (B,), or a scalar for clouds without a batch axis, never negative. Twice differentiable where it is
        positive; where the clouds coincide all derivatives are zero. Below 1e-8 of the root of the kernel's largest
        value it is rounding.

    Raises:
        TypeError, ValueError: as `squared_mmd`.
    """
)


def positive_root(q: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """Square root of what should not be negative: zero, with all derivatives, where it is not above the floor."""
    positive = q > floor
    return torch.where(positive, torch.where(positive, q, 1).sqrt(), 0)


def witness(
    z: Tensor,
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Witness function mean_i k(x_i, z) - mean_j k(y_j, z) at the points z: the potential of mu - rho."""
    sources, w = _difference(x, y, x_weights, y_weights, x_mask, y_mask, backend)
    check_cloud("z", z, like=("x", x))
    return _in_dtype_of(z, potential(z.to(w.dtype), sources, kernel, charges=w, backend=backend))


witness.__doc__ += _ARGUMENTS.replace("Args:", "Args:\n        z: points, (l, d) or (B, l, d).") + (
    """
    Returns:
        (l,) or (B, l). Raises as `squared_mmd`.
    """
)


def wasserstein_gradient(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Wasserstein gradient of mu -> MMD^2(mu, rho) / 2 at the particles x: the field of mu - rho."""
    sources, w = _difference(x, y, x_weights, y_weights, x_mask, y_mask, backend)
    n = x.shape[-2]
    present = None if x_weights is None and x_mask is None else w[..., :n] > 0
    gradient = _in_dtype_of(
        x, field(_without_padding(x, present).to(w.dtype), sources, kernel, charges=w, backend=backend)
    )
    return _without_padding(gradient, present)


wasserstein_gradient.__doc__ += _ARGUMENTS + (
    """
    Returns:
        Shape of x, zero on padding. For n equal weights this is n times the gradient with respect to each
        particle's position. Raises as `squared_mmd`.
    """
)


def _in_dtype_of(cloud: Tensor, value: Tensor) -> Tensor:
    """The value in the dtype of the cloud, but for half precision under autocast, which asks for a wider one."""
    wide = cloud.dtype.itemsize < 4 and torch.is_autocast_enabled(cloud.device.type)
    return value if wide else value.to(cloud.dtype)


def _squared(z, w, kernel, backend):
    """MMD^2 of a signed measure, of the whole one where this process has a part of it."""
    batched = z.dim() == 3
    z, w = (z, w) if batched else (z[None], w[None])
    ring = backends.sharded(backend)
    if ring is None:
        value = energy(z, w, kernel, backend)
    else:
        value = ring.whole((w * potential(z, z, kernel, charges=w, backend=backend)).sum(-1))
    return value if batched else value[0]


def _rounding(z, w, kernel):
    """What MMD^2 of coinciding clouds may come out as and still have a root whose gradient is mere rounding."""
    absent = (w == 0)[..., None]
    extent = z.masked_fill(absent, -torch.inf).amax(-2) - z.masked_fill(absent, torch.inf).amin(-2)
    diameter = extent.square().sum(-1)
    largest = torch.maximum(kernel.k(diameter).abs(), kernel.k(torch.zeros_like(diameter)).abs())
    return torch.finfo(z.dtype).eps ** 1.5 * largest


def _difference(x, y, x_weights, y_weights, x_mask, y_mask, backend, least=torch.float32):
    """Positions and charges of mu - rho, after checking both clouds, in the dtype `least` at least."""
    check_cloud("x", x)
    check_cloud("y", y, like=("x", x))
    ring = backends.sharded(backend)
    a = check_weights("x_weights", x_weights, x_mask, x, some=ring is None)
    b = check_weights("y_weights", y_weights, y_mask, y, some=ring is None)
    x, y = _without_padding(x, x_mask), _without_padding(y, y_mask)
    # In half precision the sum of many weights overflows, and a difference of measures loses its digits.
    dtype = torch.promote_types(x.dtype, least)
    x, y, a, b = (tensor.to(dtype) for tensor in (x, y, a, b))
    if ring is None:
        return signed_measure(x, y, normalised(a), normalised(b))
    return signed_measure(x, y, ring.normalised("x_weights", a), ring.normalised("y_weights", b))


def _without_padding(points, mask):
    """Points (..., d) with zeros at padding: a far value there overflows k, and a zero weight does not undo that."""
    return points if mask is None else points.masked_fill(~mask.reshape(*points.shape[:-1], 1), 0)


def normalised(weights: Tensor) -> Tensor:
    """Weights of total mass one along the last axis; their sum in float64, for half precision overflows at 65,520."""
    return (weights / weights.sum(-1, keepdim=True, dtype=torch.float64)).to(weights.dtype)


def signed_measure(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and charges of sum_i a_i delta_{x_i} - sum_j b_j delta_{y_j}."""
    return torch.cat((x, y), -2), torch.cat((a, -b), -1)
