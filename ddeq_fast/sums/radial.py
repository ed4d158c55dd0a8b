"""Radial kernels k(x, y) = k(q), q = |x - y|^2, as three scalar functions of q.

Writing d = x - y, every derivative that the package needs follows from k, phi and phi':

    grad_1 k = phi(q) d,          phi  = 2 dk/dq
    D_d (grad_1 k) s = phi(q) s + 2 phi'(q) <d, s> d,     phi' = dphi/dq

The second is summed as phi s + c <d/|d|, s> d/|d| with the curvature c = 2 q phi': near a cusp, and in small units,
phi' leaves the range of numbers long before phi, c and the sum do.

At q = 0 a kernel with a cusp (Riesz, Laplacian) has phi = phi' = c = 0: coincident points exert no force.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq_fast.utils.validation import check_number

# Bandwidths and weights, and one over bandwidths, lie below: their squares are numbers.
LARGEST = 1e100


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

    def curvature(self, q: Tensor) -> Tensor:
        """2 q phi'(q), zero where points coincide: the second derivative along x - y is phi + curvature."""
        return 2 * q * self.dphi(q)

    def terms(self) -> tuple[tuple[float, RadialKernel], ...]:
        """The kernel as a weighted list of elementary kernels."""
        return ((1.0, self),)

    def __add__(self, other: RadialKernel) -> Mixture:
        if not isinstance(other, RadialKernel):
            return NotImplemented
        return Mixture(self.terms() + other.terms())

    def __mul__(self, factor: float) -> Mixture:
        factor = check_number("factor", factor, low=-LARGEST, high=LARGEST)
        return Mixture(tuple((factor * weight, kernel) for weight, kernel in self.terms()))

    __rmul__ = __mul__


def _away_from_zero(q: Tensor) -> Tensor:
    """q with zeros replaced by one: a cusp's derivatives are masked there, and stay finite under autograd."""
    return torch.where(q > 0, q, torch.ones_like(q))


def _mask_zero(q: Tensor, value: Tensor) -> Tensor:
    return torch.where(q > 0, value, torch.zeros_like(value))


class Elementary(RadialKernel):
    """A kernel with one number, which backends with code of their own may know.

    Its functions of q are made by `profile`, whose number may be a tensor: compiled code takes it as an argument.
    """

    @property
    def number(self) -> float:
        """Exponent or bandwidth."""
        raise NotImplementedError

    @property
    def code(self) -> str:
        """Selects code, where the number alone does not: a special exponent has its own."""
        return type(self).__name__.lower()

    @staticmethod
    def profile(order: str, q: Tensor, number: float | Tensor, code: str) -> Tensor:
        """`order` "k", "phi" or "curvature" at squared distances q, of the kernel with this number and code."""
        raise NotImplementedError

    def k(self, q):
        return self.profile("k", q, self.number, self.code)

    def phi(self, q):
        return self.profile("phi", q, self.number, self.code)

    def curvature(self, q):
        return self.profile("curvature", q, self.number, self.code)


_SPECIAL = {0.5: "riesz_1/2", 1.0: "riesz_1", 1.5: "riesz_3/2"}


def _riesz_power(q: Tensor, r: float | Tensor, code: str) -> Tensor:
    """q ** (r / 2 - 1) for q > 0, special exponents without the general power, which is slow."""
    if code == "riesz_1":
        return q.rsqrt()
    if code == "riesz_1/2":
        root = q.rsqrt()
        return root * (q * root).rsqrt()
    if code == "riesz_3/2":
        return q.sqrt().rsqrt()
    return q.pow(r / 2 - 1)


@dataclass(frozen=True)
class Riesz(Elementary):
    """k = -|x - y|^r with 0 < r < 2, conditionally positive definite; r = 1 is the energy distance."""

    r: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "r", check_number("r", self.r, high=2.0))

    @property
    def number(self):
        return self.r

    @property
    def code(self):
        return _SPECIAL.get(self.r, "riesz")

    @staticmethod
    def profile(order, q, number, code):
        safe = _away_from_zero(q)
        if order == "k" and code == "riesz_1":
            return _mask_zero(q, -safe.sqrt())
        power = _riesz_power(safe, number, code)
        if order == "k":
            return _mask_zero(q, -safe * power)
        return _mask_zero(q, power * (-number if order == "phi" else number * (2 - number)))

    def dphi(self, q):
        return _mask_zero(q, _away_from_zero(q).pow(self.r / 2 - 2) * (self.r * (1 - self.r / 2)))


@dataclass(frozen=True)
class _Scaled(Elementary):
    """A kernel with a bandwidth sigma > 0, in the units of the points."""

    sigma: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "sigma", check_number("sigma", self.sigma, low=1 / LARGEST, high=LARGEST))

    @property
    def number(self):
        return self.sigma


@dataclass(frozen=True)
class Gaussian(_Scaled):
    """k = exp(-|x - y|^2 / (2 sigma^2))."""

    @staticmethod
    def profile(order, q, number, code):
        rate = 1 / number**2
        value = torch.exp(q * (-0.5 * rate))
        if order == "k":
            return value
        return value * -rate if order == "phi" else value * (q * rate) * rate

    def dphi(self, q):
        return self.k(q) * 0.5 / self.sigma**2 / self.sigma**2


@dataclass(frozen=True)
class Laplacian(_Scaled):
    """k = exp(-|x - y| / sigma)."""

    @staticmethod
    def profile(order, q, number, code):
        safe = _away_from_zero(q)
        if order == "k":
            return torch.exp(_mask_zero(q, safe.sqrt()) * (-1 / number))
        inverse = safe.rsqrt()
        value = torch.exp(safe.sqrt() * (-1 / number)) * (1 / number)
        return _mask_zero(q, value * -inverse if order == "phi" else value * (1 / number + inverse))

    def dphi(self, q):
        safe = _away_from_zero(q)
        return _mask_zero(q, self.curvature(safe) / (2 * safe))


@dataclass(frozen=True)
class InverseMultiquadric(_Scaled):
    """k = (1 + |x - y|^2 / sigma^2)^(-1/2)."""

    @staticmethod
    def profile(order, q, number, code):
        rate = 1 / number**2
        root = (1 + q * rate).rsqrt()
        if order == "k":
            return root
        cube = root * root * root
        return cube * -rate if order == "phi" else cube * (root * root) * (3 * q * rate) * rate

    def dphi(self, q):
        return (1 + q / self.sigma**2).pow(-2.5) * 1.5 / self.sigma**2 / self.sigma**2


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
            weight = check_number("weight", component[0], low=-LARGEST, high=LARGEST)
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

    def curvature(self, q):
        return sum(weight * kernel.curvature(q) for weight, kernel in self.components)
