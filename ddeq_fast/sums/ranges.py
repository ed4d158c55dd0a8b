"""Clouds of any size: where single precision does not hold the squares of distances, sums are carried out in float64.

Sums are made of q = |x - y|^2, which float32 holds for distances from 1e-19 to 1e19. Beyond, all points would coincide
or be infinitely far, without a word; padding may lie that far too. float64 holds the squares of all that float32 holds.

What is left: points nearer than 1e-18 in float32 (1e-150 in float64) count as coincident where the cloud's largest
coordinate lies between 1e-6 and 1e15. Clouds of float64 whose largest coordinate lies beyond 1e-140 or 1e140 are
refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddeq_fast.sums.backends.registry import Backend
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils import transforms
from ddeq_fast.utils.validation import values_readable

# Largest coordinates, least bandwidths and largest weights that are good for sums in single precision.
_LOW, _HIGH = 2.0**-20, 2.0**50
_BANDWIDTH, _WEIGHT = 2.0**-60, 2.0**100
_WIDEST = 1e140  # and one over it, in float64


def largest(*clouds: Tensor) -> float:
    """The largest absolute coordinate."""
    ends = [torch.stack(torch.aminmax(cloud.detach())).abs().max() for cloud in clouds]
    return max(map(float, ends))


def suits_single(*clouds: Tensor) -> bool:
    """Whether single precision holds the squares of these clouds' distances. True where values cannot be read."""
    behind = [transforms.unwrapped(cloud) for cloud in clouds]
    size = largest(*behind) if all(map(values_readable, behind)) else 0.0
    return size == 0 or _LOW <= size <= _HIGH or not math.isfinite(size)


def in_range(
    backend: Backend,
    sums: Callable[..., tuple[Tensor | None, ...]],
    kernel: RadialKernel,
    x: Tensor,
    y: Tensor,
    *rest: Tensor,
) -> tuple[Tensor, ...]:
    """sums(x, y, *rest), which `backend` carries out: in float64, results in the dtype of x, where x and y need it.

    An empty tensor stands for a sum that is None.

    Raises ValueError if they need it and the backend cannot do it, or if even float64 does not hold them.
    """
    if not values_readable(x) or not _need_double(kernel, x, y):
        return tuple(x.new_empty(0) if part is None else part for part in sums(x, y, *rest))
    wide_x = x.double()
    wide_y = wide_x if y is x else y.double()  # a cloud on itself stays one
    reason = backend.unsupported(wide_x, wide_y, kernel)
    if reason is not None:
        size = largest(x, y)
        raise ValueError(f"coordinates up to {size:.3g} under {kernel!r} need float64, and this backend {reason}")
    found = sums(wide_x, wide_y, *(tensor.double() for tensor in rest))
    return tuple(x.new_empty(0) if part is None else part.to(x.dtype) for part in found)


def _need_double(kernel: RadialKernel, x: Tensor, y: Tensor) -> bool:
    """Whether clouds in single precision or less are to be summed in float64; raises ValueError as `_check_double`."""
    clouds = (x,) if y is x else (x, y)
    if x.dtype == torch.float64:
        _check_double(kernel, largest(*clouds))
        return False
    sigma, weight = kernel.bandwidth, max(abs(weight) for weight, _ in kernel.terms())
    narrow = sigma is not None and sigma < _BANDWIDTH
    return narrow or weight > _WEIGHT or not suits_single(*clouds)


def _check_double(kernel: RadialKernel, size: float) -> None:
    """Raise ValueError for what float64 does not hold."""
    if 0 < size < 1 / _WIDEST or _WIDEST < size < math.inf:
        raise ValueError(f"points have coordinates up to {size:.3g}, whose squares float64 does not hold: rescale them")
    sigma = kernel.bandwidth
    if math.isfinite(size) and sigma is not None and sigma < size / _WIDEST:
        raise ValueError(f"kernel {kernel!r}: sigma = {sigma:g} is too small for coordinates up to {size:.3g}")
