"""Radial kernels k(x, y) = k(q), q = |x - y|^2, as three scalar functions of q.

Writing d = x - y, every derivative that the package needs follows from k, phi and phi':

    grad_1 k = phi(q) d,          phi  = 2 dk/dq
    D_d (grad_1 k) s = phi(q) s + 2 phi'(q) <d, s> d,     phi' = dphi/dq

At q = 0 a kernel with a cusp (Riesz, Laplacian) has phi = phi' = 0: coincident points exert no force.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq_fast.validation import check_number


class RadialKernel:
    """A radial kernel: hashable and immutable, so that it can select compiled code.

    `k`, `phi` and `dphi` map squared distances (any shape, float) to values of the same shape. Kernels add
    and scale: `0.5 * Gaussian(1.0) + Riesz(1.0)` is a `Mixture`.
    """

    def k(self, q: Tensor) -> Tensor:
        """Kernel value at squared distance q."""
        raise NotImplementedError

    def phi(self, q: Tensor) -> Tensor:
        """2 dk/dq: the gradient of the kernel is phi(q) (x - y)."""
        raise NotImplementedError

    def dphi(self, q: Tensor) -> Tensor:
        """Derivative of phi with respect to q."""
        raise NotImplementedError

    def terms(self) -> tuple[tuple[float, RadialKernel], ...]:
        """The kernel as a weighted list of elementary kernels."""
        return ((1.0, self),)

    def __add__(self, other: RadialKernel) -> Mixture:
        if not isinstance(other, RadialKernel):
            return NotImplemented
        return Mixture(self.terms() + other.terms())

    def __mul__(self, factor: float) -> Mixture:
        factor = check_number("factor", factor, low=-math.inf)
        return Mixture(tuple((factor * weight, kernel) for weight, kernel in self.terms()))

    __rmul__ = __mul__


def _away_from_zero(q: Tensor) -> Tensor:
    """q with zeros replaced by one: a cusp's derivatives are masked there, and stay finite under autograd."""
    return torch.where(q > 0, q, torch.ones_like(q))


def _mask_zero(q: Tensor, value: Tensor) -> Tensor:
    return torch.where(q > 0, value, torch.zeros_like(value))


def _power(q: Tensor, exponent: float) -> Tensor:
    """q ** exponent for q > 0; half-integers without the general power, which is slow."""
    if exponent == 0.5:
        return q.sqrt()
    if exponent == -0.5:
        return q.rsqrt()
    if exponent == -1.5:
        return q.rsqrt() / q
    return q.pow(exponent)


@dataclass(frozen=True)
class Riesz(RadialKernel):
    """k = -|x - y|^r with 0 < r < 2, conditionally positive definite; r = 1 is the energy distance."""

    r: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "r", check_number("r", self.r, high=2.0))

    def k(self, q):
        return _mask_zero(q, -_power(_away_from_zero(q), self.r / 2))

    def phi(self, q):
        return _mask_zero(q, -self.r * _power(_away_from_zero(q), self.r / 2 - 1))

    def dphi(self, q):
        return _mask_zero(q, -self.r * (self.r / 2 - 1) * _power(_away_from_zero(q), self.r / 2 - 2))


@dataclass(frozen=True)
class _Scaled(RadialKernel):
    """A kernel with a bandwidth sigma > 0, in the units of the points."""

    sigma: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "sigma", check_number("sigma", self.sigma))


@dataclass(frozen=True)
class Gaussian(_Scaled):
    """k = exp(-|x - y|^2 / (2 sigma^2))."""

    def k(self, q):
        return torch.exp(q * (-0.5 / self.sigma**2))

    def phi(self, q):
        return self.k(q) * (-1 / self.sigma**2)

    def dphi(self, q):
        return self.k(q) * (0.5 / self.sigma**4)


@dataclass(frozen=True)
class Laplacian(_Scaled):
    """k = exp(-|x - y| / sigma)."""

    def k(self, q):
        return torch.exp(_mask_zero(q, _away_from_zero(q).sqrt()) * (-1 / self.sigma))

    def phi(self, q):
        safe = _away_from_zero(q)
        return _mask_zero(q, -torch.exp(safe.sqrt() / -self.sigma) * safe.rsqrt() / self.sigma)

    def dphi(self, q):
        safe = _away_from_zero(q)
        value = torch.exp(safe.sqrt() / -self.sigma) / (2 * self.sigma * safe)
        return _mask_zero(q, value * (1 / self.sigma + safe.rsqrt()))


@dataclass(frozen=True)
class InverseMultiquadric(_Scaled):
    """k = (1 + |x - y|^2 / sigma^2)^(-1/2)."""

    def k(self, q):
        return _power(1 + q / self.sigma**2, -0.5)

    def phi(self, q):
        return _power(1 + q / self.sigma**2, -1.5) * (-1 / self.sigma**2)

    def dphi(self, q):
        return (1 + q / self.sigma**2).pow(-2.5) * (1.5 / self.sigma**4)


# The elementary kernels that backends with code of their own may know; subclasses are a user's.
KNOWN = (Riesz, Gaussian, Laplacian, InverseMultiquadric)


@dataclass(frozen=True)
class Mixture(RadialKernel):
    """sum_m weight_m k_m, given as a tuple of (weight, kernel); nested mixtures are flattened.

    Raises ValueError if the tuple is empty, TypeError if it is no tuple (or list) or an
    entry is not a (number, RadialKernel) pair.
    """

    components: tuple[tuple[float, RadialKernel], ...]

    def __post_init__(self):
        if not isinstance(self.components, (tuple, list)):
            got = type(self.components).__name__
            raise TypeError(f"components must be a tuple of (weight, kernel) pairs, got {got}")
        flat = []
        for component in self.components:
            if not (isinstance(component, tuple) and len(component) == 2 and isinstance(component[1], RadialKernel)):
                raise TypeError(f"components must be (weight, kernel) pairs, got {component!r}")
            weight = check_number("weight", component[0], low=-math.inf)
            flat += [(weight * inner, kernel) for inner, kernel in component[1].terms()]
        if not flat:
            raise ValueError("components must not be empty")
        object.__setattr__(self, "components", tuple(flat))

    def terms(self):
        return self.components

    def k(self, q):
        return sum(weight * kernel.k(q) for weight, kernel in self.components)

    def phi(self, q):
        return sum(weight * kernel.phi(q) for weight, kernel in self.components)

    def dphi(self, q):
        return sum(weight * kernel.dphi(q) for weight, kernel in self.components)
