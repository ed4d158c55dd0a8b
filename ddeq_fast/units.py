"""Units in which squares of distances are numbers: clouds far too large or too small are rescaled by a power of two.

Sums are made of q = |x - y|^2, which float32 holds for distances from 1e-19 to 1e19. Beyond, all points would coincide
or be infinitely far, without a word. The change of units is exact, and the kernel's bandwidths change along.

What is left: points nearer than 1e-18 in float32 (1e-150 in float64) count as coincident, in clouds that are rescaled
those nearer than that part of the largest coordinate. A cloud that holds ordinary coordinates beside ones beyond 1e15
(1e90) is refused.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ddeq_fast.radial import KNOWN, RadialKernel
from ddeq_fast.validation import values_readable


class _Range(NamedTuple):
    """Largest coordinates that need no other units; the least share of the largest whose square is still a number; the
    least bandwidth, and the largest weight, of clouds of extent one."""

    low: float
    high: float
    share: float
    bandwidth: float
    weight: float


_SINGLE = _Range(2.0**-20, 2.0**50, 2.0**-60, 2.0**-62, 2.0**120)
_DOUBLE = _Range(2.0**-300, 2.0**300, 2.0**-490, 2.0**-500, 2.0**1000)


def _range(dtype: torch.dtype) -> _Range:
    return _DOUBLE if dtype == torch.float64 else _SINGLE


def largest(cloud: Tensor) -> float:
    """The largest absolute coordinate."""
    low, high = torch.aminmax(cloud.detach())
    return max(-float(low), float(high))


def without_far_padding(points: Tensor, charges: Tensor) -> Tensor:
    """Points (..., n, d), those of zero charge (..., n) at the origin if they are too far for squares to be numbers.

    They have no influence, but zero times infinity is not zero. Where derivatives in the charges are wanted they have
    some, and stay.
    """
    if charges.requires_grad or not values_readable(points) or unpack_dual(charges).tangent is not None:
        return points
    if largest(points) <= _range(points.dtype).high:
        return points
    return points.masked_fill((charges == 0)[..., None], 0)


def in_range(kernel: RadialKernel, *clouds: Tensor, fixed: bool = False) -> tuple[RadialKernel, float]:
    """(kernel, scale): sums of `kernel` over the clouds are those of the kernel returned over scale times the clouds.

    Potentials are the same, fields `scale` times as large in the old units as in the new. `scale` is one for all clouds
    that need no other units, and where values cannot be read. If `fixed`, no other units can be chosen.

    Raises ValueError for what the dtype of the clouds cannot hold in any units.
    """
    if not values_readable(clouds[0]):
        return kernel, 1.0
    dtype, size = clouds[0].dtype, max(map(largest, clouds))
    scale = _scale(clouds, size)
    if scale == 1:
        return _checked(kernel, dtype, size), scale
    if fixed:
        raise ValueError(f"points with coordinates up to {size:g} cannot be rescaled by this backend: rescale them")
    return _checked(_rescaled(kernel, scale, size), dtype, 1.0), scale


def scale_of(*clouds: Tensor) -> float:
    """What clouds are to be multiplied by for their squared distances to be numbers, see `in_range`."""
    return _scale(clouds, max(map(largest, clouds))) if values_readable(clouds[0]) else 1.0


def _scale(clouds, size: float) -> float:
    limits = _range(clouds[0].dtype)
    if not (0 < size < limits.low or limits.high < size < math.inf):  # NaN, in unchecked clouds, stays NaN
        return 1.0
    if size > limits.high:
        _check_spread(clouds, size, limits)
    return 2.0 ** -math.frexp(size)[1]


def _check_spread(clouds, size: float, limits: _Range) -> None:
    """Raise if coordinates are so different that one's units are not the other's."""
    for cloud in clouds:
        magnitudes = cloud.detach().abs()
        small = float(torch.where(magnitudes > 0, magnitudes, torch.inf).min())
        if small < size * limits.share:
            raise ValueError(
                f"points hold coordinates from {small:g} to {size:g}, whose squares {str(cloud.dtype)[6:]} cannot hold "
                "together: use float64, or mask the points that are far away"
            )


@functools.lru_cache(maxsize=256)
def _rescaled(kernel: RadialKernel, scale: float, size: float) -> RadialKernel:
    try:
        found = kernel.rescaled(scale)
    except ValueError as error:
        raise ValueError(f"kernel {kernel!r} does not suit clouds with coordinates up to {size:g}: {error}") from error
    if found is None:
        raise ValueError(
            f"points have coordinates up to {size:g}, and {kernel!r} says not how to change units "
            "(RadialKernel.rescaled)"
        )
    return found


def _checked(kernel: RadialKernel, dtype: torch.dtype, size: float) -> RadialKernel:
    """The kernel, if its numbers can be used in this dtype on clouds of this size."""
    limits, (weight, sigma) = _range(dtype), _extremes(kernel)
    if weight > limits.weight:
        raise ValueError(f"kernel {kernel!r} has a weight of {weight:g}, beyond what {str(dtype)[6:]} holds")
    if sigma < limits.bandwidth * size:
        raise ValueError(
            f"kernel {kernel!r}: sigma = {sigma:g} is too small in {str(dtype)[6:]} for clouds with coordinates up to "
            f"{size:g}"
        )
    return kernel


@functools.lru_cache(maxsize=256)
def _extremes(kernel: RadialKernel) -> tuple[float, float]:
    """Largest absolute weight and least bandwidth of the terms."""
    weights, terms = zip(*kernel.terms(), strict=True)
    sigmas = [term.sigma for term in terms if isinstance(term, KNOWN) and hasattr(term, "sigma")]
    return max(map(abs, weights)), min(sigmas, default=math.inf)
