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
from ddeq_fast.sums.certify import certify_sums, check_certify
from ddeq_fast.sums.fields import field, potential
from ddeq_fast.sums.measures import Measure, pair, without_padding
from ddeq_fast.sums.operators import energy
from ddeq_fast.sums.radial import RadialKernel, check_kernel
from ddeq_fast.utils import transforms
from ddeq_fast.utils.validation import check_cloud


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
    tolerance: float | None = None,
    certify: int | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy MMD^2(mu, rho) of the measures on x and y (V-statistic).

    Args:
        x, y: clouds, (n, d) and (m, d), or batched (B, n, d) and (B, m, d), floating point; same dtype and device.
        kernel: radial kernel; `Riesz(1)`, the energy distance, if None.
        x_weights, y_weights: nonnegative weights, (n,) or (B, n), normalised to mass one; uniform if None. Boolean ones
            are a mask.
        x_mask, y_mask: boolean, same shape, True for real points; padding has no influence and no gradient.
        backend: a name from `ddeq_fast.sums.backends.names()`, or "auto".
        tolerance: of the potentials u at the points of both clouds, as in `potential`, which MMD^2 = sum_i w_i u_i is
            made of: it is off by at most tolerance |w| |u|, which is much more than the tolerance of near clouds.
        certify: how many random points of both clouds these potentials are compared at, as in `potential`; `absolute`
            of what is found bounds the error of MMD^2. Then a backward pass costs about two more sums.

    Returns:
        (B,), or a scalar for clouds without a batch axis. Twice differentiable in x, y and the weights.
        With `Riesz(1)` it is 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely & Rizzo, 2013); with every kernel it is twice
        the loss of geomloss, which is MMD^2 / 2: `interop.geomloss` has that.
        It is a difference of sums: of near clouds rounding is left of it, which may be slightly negative. Do not
        take its root, whose value and gradient would be NaN there: `mmd_distance` is the root.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty or fully masked cloud.
    """
    backend = backends.to_tolerance(backend, tolerance)
    mu, rho = _measures(x, y, x_weights, y_weights, x_mask, y_mask, backend)
    samples = None if certify is None else transforms.outside_the_graph(check_certify, certify, backend, x)
    z, w = _difference(mu, rho, backend)
    return _in_dtype_of(x, _squared(z, w, check_kernel(kernel), backend, samples))


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
    """Maximum mean discrepancy, the root of `squared_mmd`, summed in float64 so that near clouds keep their digits.

    Arguments and errors are those of `squared_mmd`.

    Returns:
        (B,), or a scalar for clouds without a batch axis, never negative. Twice differentiable where it is
        positive; where the clouds coincide all derivatives are zero. Below 1e-8 of the root of the kernel's largest
        value it is rounding.
    """
    mu, rho = _measures(x, y, x_weights, y_weights, x_mask, y_mask, backend)
    z, w = _difference(mu, rho, backend, torch.float64)
    kernel = check_kernel(kernel)
    # Processes that have different parts must agree on what is zero.
    floor = 0.0 if backends.sharded(backend) else _rounding(z.detach(), w.detach(), kernel)
    return _in_dtype_of(x, positive_root(_squared(z, w, kernel, backend), floor))


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
    tolerance: float | None = None,
    certify: int | None = None,
) -> Tensor:
    """Witness function sum_i a_i k(x_i, z) - sum_j b_j k(y_j, z) at the points z: the potential of mu - rho.

    Args:
        z: points, (l, d) or (B, l, d); dtype, device, batch and dimension of x.
        x, y, kernel, x_weights, y_weights, x_mask, y_mask, backend: as in `squared_mmd`, whose errors it raises.
        tolerance, certify: of the result, as in `potential`.

    Returns:
        (l,) or (B, l). Twice differentiable in z, x, y and the weights.
    """
    backend = backends.to_tolerance(backend, tolerance)
    mu, rho = _measures(x, y, x_weights, y_weights, x_mask, y_mask, backend)
    check_cloud("z", z, like=("x", x))
    sources, w = _difference(mu, rho, backend)
    found = potential(z.to(w.dtype), sources, kernel, charges=w, backend=backend, certify=certify)
    return _in_dtype_of(z, found)


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
    tolerance: float | None = None,
    certify: int | None = None,
) -> Tensor:
    """Wasserstein gradient of mu -> MMD^2(mu, rho) / 2 at the particles x: the field of mu - rho.

    Arguments and errors are those of `squared_mmd`; tolerance and certify are of the result, as in `field`.

    Returns:
        Shape of x, zero on padding. For n equal weights this is n times the gradient with respect to each
        particle's position.
    """
    backend = backends.to_tolerance(backend, tolerance)
    mu, rho = _measures(x, y, x_weights, y_weights, x_mask, y_mask, backend)
    sources, w = _difference(mu, rho, backend)
    targets = without_padding(mu.points, mu.real).to(w.dtype)
    gradient = field(targets, sources, kernel, charges=w, backend=backend, certify=certify)
    return without_padding(_in_dtype_of(x, gradient), mu.real)


def positive_root(q: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """Square root of what should not be negative: zero, with all derivatives, where it is not above the floor."""
    positive = q > floor
    return torch.where(positive, torch.where(positive, q, 1).sqrt(), 0)


def normalised(weights: Tensor) -> Tensor:
    """Weights of total mass one along the last axis; their sum in float64, for half precision overflows at 65,520."""
    return (weights / weights.sum(-1, keepdim=True, dtype=torch.float64)).to(weights.dtype)


def signed_measure(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and charges of sum_i a_i delta_{x_i} - sum_j b_j delta_{y_j}."""
    return torch.cat((x, y), -2), torch.cat((a, -b), -1)


def _measures(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    x_mask: Tensor | None,
    y_mask: Tensor | None,
    backend: str,
) -> tuple[Measure, Measure]:
    """mu and rho; over shards a process may have points without mass."""
    return pair(x, y, x_weights, y_weights, x_mask, y_mask, some=backends.sharded(backend) is None)


def _difference(mu: Measure, rho: Measure, backend: str, least: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Positions and charges of mu - rho, both of mass one, in the dtype `least` at least."""
    # In half precision the sum of many weights overflows, and a difference of measures loses its digits.
    dtype = torch.promote_types(mu.points.dtype, least)
    mu, rho = mu.to(dtype), rho.to(dtype)
    ring = backends.sharded(backend)
    if ring is None:
        a, b = normalised(mu.weights), normalised(rho.weights)
    else:
        a, b = ring.normalised("x_weights", mu.weights), ring.normalised("y_weights", rho.weights)
    return signed_measure(mu.points, rho.points, a, b)


def _squared(z: Tensor, w: Tensor, kernel: RadialKernel, backend: str, samples: int | None = None) -> Tensor:
    """MMD^2 of a signed measure, of the whole one where this process has a part of it; compared at `samples` points."""
    batched = z.dim() == 3
    z, w = (z, w) if batched else (z[None], w[None])
    ring = backends.sharded(backend)
    if ring is None and samples is None:
        value = energy(z, w, kernel, backend)
    else:
        u = potential(z, z, kernel, charges=w, backend=backend)
        value = (w * u).sum(-1)
        if samples is not None:
            clouds = z, z, w
            transforms.outside_the_graph(
                certify_sums, (u, None), clouds, kernel, backend, samples, batched, "squared_mmd"
            )
        if ring is not None:
            value = ring.whole(value)
    return value if batched else value[0]


def _rounding(z: Tensor, w: Tensor, kernel: RadialKernel) -> Tensor:
    """What MMD^2 of coinciding clouds may come out as and still have a root whose gradient is mere rounding."""
    absent = (w == 0)[..., None]
    extent = z.masked_fill(absent, -torch.inf).amax(-2) - z.masked_fill(absent, torch.inf).amin(-2)
    diameter = extent.square().sum(-1)
    largest = torch.maximum(kernel.k(diameter).abs(), kernel.k(torch.zeros_like(diameter)).abs())
    return torch.finfo(z.dtype).eps ** 1.5 * largest


def _in_dtype_of(cloud: Tensor, value: Tensor) -> Tensor:
    """The value in the dtype of the cloud, but for half precision under autocast, which asks for a wider one."""
    wide = cloud.dtype.itemsize < 4 and torch.is_autocast_enabled(cloud.device.type)
    return value if wide else value.to(cloud.dtype)
