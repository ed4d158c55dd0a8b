"""Clouds of any size: where single precision does not hold the squares of distances, sums are carried out in float64.

Sums are made of q = |x - y|^2, which float32 holds for distances from 1e-19 to 1e19. Beyond, all points would coincide
or be infinitely far, without a word; padding may lie that far too. float64 holds the squares of all that float32 holds.

What is left: points nearer than 1e-18 in float32 (1e-150 in float64) count as coincident where the cloud's largest
coordinate lies between 1e-6 and 1e15. Clouds of float64 whose largest coordinate lies beyond 1e-140 or 1e140 are
refused.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddeq_fast.sums.radial import KNOWN, RadialKernel, Riesz
from ddeq_fast.utils import transforms
from ddeq_fast.utils.validation import values_readable

# Largest coordinates, least bandwidths and largest weights that are good for sums in single precision.
_LOW, _HIGH = 2.0**-20, 2.0**50
_BANDWIDTH, _WEIGHT = 2.0**-60, 2.0**100
_WIDEST = 1e140  # and one over it, in float64
_SCALED = tuple(kind for kind in KNOWN if kind is not Riesz)


def largest(*clouds: Tensor) -> float:
    """The largest absolute coordinate."""
    ends = [torch.stack(torch.aminmax(cloud.detach())).abs().max() for cloud in clouds]
    return max(map(float, ends))


def suits_single(*clouds: Tensor) -> bool:
    """Whether single precision holds the squares of these clouds' distances. True where values cannot be read."""
    clouds = [transforms.unwrapped(cloud) for cloud in clouds]
    size = largest(*clouds) if all(map(values_readable, clouds)) else 0.0
    return size == 0 or _LOW <= size <= _HIGH or not math.isfinite(size)


def _extremes(kernel: RadialKernel) -> tuple[float, float]:
    """Largest absolute weight and least bandwidth of the terms."""
    weights, terms = zip(*kernel.terms(), strict=True)
    return max(map(abs, weights)), min((t.number for t in terms if isinstance(t, _SCALED)), default=math.inf)


class AnySize:
    """A backend for clouds of any size; see `backends.Backend` for its methods."""

    def __init__(self, backend):
        self.backend = backend

    def evaluate(self, x, y, v, kernel, potential, field):
        """See `Backend.evaluate`."""

        def sums(x, y, v):
            return self.backend.evaluate(x, y, v, kernel, potential, field)

        return self._run(sums, kernel, x, y, v)

    def tangent(self, x, y, v, s, t, kernel):
        """See `Backend.tangent`."""

        def sums(x, y, v, s, t):
            return self.backend.tangent(x, y, v, s, t, kernel)

        return self._run(sums, kernel, x, y, v, s, t)

    def energy(self, z, w, kernel, field):
        """See `Backend`; of any backend."""

        def sums(z, _, w):
            if hasattr(self.backend, "energy"):
                return self.backend.energy(z, w, kernel, field)
            u, f = self.backend.evaluate(z, z, w, kernel, True, field)
            return (w * u).sum(-1), u, f

        return self._run(sums, kernel, z, z, w)

    def _run(self, sums, kernel, x, y, v, *moves):
        """sums(x, y, v, *moves) in a dtype that suits."""
        if not values_readable(x):
            return sums(x, y, v, *moves)
        clouds = (x,) if y is x else (x, y)
        weight, sigma = _extremes(kernel)
        if x.dtype == torch.float64:
            _check_double(kernel, sigma, largest(*clouds))
        elif not (suits_single(*clouds) and sigma >= _BANDWIDTH and weight <= _WEIGHT):
            return self._in_double(sums, kernel, clouds, v, *moves)
        return sums(x, y, v, *moves)

    def _in_double(self, sums, kernel, clouds, *rest):
        """`sums` of the same numbers in float64, results in their own dtype."""
        dtype, (x, *others) = clouds[0].dtype, (cloud.double() for cloud in clouds)
        y = others[0] if others else x  # a cloud on itself stays one
        reason = self.backend.unsupported(x, y, kernel)
        if reason is not None:
            raise ValueError(
                f"coordinates up to {largest(x, y):.3g} under {kernel!r} need float64, and this backend {reason}"
            )
        found = sums(x, y, *(tensor.double() for tensor in rest))
        return tuple(None if part is None else part.to(dtype) for part in found)


def _check_double(kernel: RadialKernel, sigma: float, size: float) -> None:
    """Raise ValueError for what float64 does not hold."""
    if 0 < size < 1 / _WIDEST or _WIDEST < size < math.inf:
        raise ValueError(f"points have coordinates up to {size:.3g}, whose squares float64 does not hold: rescale them")
    if math.isfinite(size) and sigma < size / _WIDEST:
        raise ValueError(f"kernel {kernel!r}: sigma = {sigma:g} is too small for coordinates up to {size:.3g}")
