"""Radial kernels k(x, y) = k(q), q = |x - y|^2, as three scalar functions of q.

Writing d = x - y, every derivative that the package needs follows from k, phi and phi':

    grad_1 k = phi(q) d,          phi  = 2 dk/dq
    D_d (grad_1 k) s = phi(q) s + 2 phi'(q) <d, s> d,     phi' = dphi/dq

The second is summed as phi s + c <d/|d|, s> d/|d| with the curvature c = 2 q phi': near a cusp, and in small units,
phi' leaves the range of numbers long before phi, c and the sum do.

At q = 0 a kernel with a cusp (Riesz, Laplacian) has phi = phi' = c = 0: coincident points exert no force.

A kernel of one number, its exponent or bandwidth, is an `Elementary`: a class with a name and a profile, made known by
`register`. From then on it has a text (`str`, and `text.parse`), and backends that compile profiles run it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import ClassVar, TypeGuard, TypeVar

import torch
from torch import Tensor

from ddeq_fast.utils.validation import check_number

# Bandwidths and weights, and one over bandwidths, lie below: their squares are numbers.
LARGEST = 1e100


class RadialKernel:
    """A radial kernel, which must not be changed once it is in use.

    `k`, `phi` and `dphi` map squared distances (any shape, float) to values of the same shape: a kernel of your own has
    these three, and the dense backend runs it. Kernels add and scale: `0.5 * Gaussian(1.0) + Riesz(1.0)` is a
    `Mixture`.
    """

    # What a registered kernel is called in texts; empty for others.
    name: ClassVar[str] = ""

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
        """The kernel as a weighted list of kernels that are no mixtures."""
        return ((1.0, self),)

    @property
    def bandwidth(self) -> float | None:
        """The length at which it turns, the least one of a mixture; None if it has none, as Riesz kernels do."""
        return None

    def rescaled(self, factor: float, least: float = 0.0) -> RadialKernel:
        """The kernel with all its bandwidths times `factor`, but none below `least`; itself where it has none."""
        return self

    @property
    def smooth(self) -> bool:
        """Whether it has no cusp: at one, and only there, curvature is as large as phi where points nearly coincide."""
        near = torch.tensor(1e-200, dtype=torch.float64)
        return float(self.curvature(near).abs()) <= 1e-6 * float(self.phi(near).abs()) + 1e-90

    def __str__(self) -> str:
        """The text that `text.parse` reads, such as "riesz:1 + 0.5*gaussian:2"; of an unregistered kernel, its repr."""
        return written(self, repr)

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


def _exp(x: Tensor) -> Tensor:
    """e^x, zero where that is no normal number: CPUs take up to a hundred times as long for those."""
    if x.dtype.itemsize < 4:
        return torch.exp(x)
    least = math.log(torch.finfo(x.dtype).tiny) + 0.01  # beyond rounding
    return torch.exp(torch.nn.functional.threshold(x, least, -math.inf))


class Elementary(RadialKernel):
    """A kernel made from one number, which backends with code of their own may know once it is registered.

    Its functions of q are made by `profile`, whose number may be a tensor: compiled code takes it as an argument.
    A subclass has a `name`, a `number` that it is made from, and a `profile`.
    """

    def __init__(self, number: float):
        raise NotImplementedError

    @property
    def number(self) -> float:
        """Exponent or bandwidth."""
        raise NotImplementedError

    @property
    def code(self) -> str:
        """Selects code, where the number alone does not: a special exponent has its own."""
        return self.name

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

    def dphi(self, q):
        safe = _away_from_zero(q)
        return _mask_zero(q, self.curvature(safe) / (2 * safe))


# The name in an operator's texts of a kernel that is not registered: see `encoding`.
OWN = "own"
_K = TypeVar("_K", bound=type[Elementary])
_REGISTERED: dict[str, type[Elementary]] = {}


def register(kind: _K) -> _K:
    """Make a class of elementary kernels known by its `name`: a decorator.

    Raises TypeError for anything but a subclass of `Elementary`, ValueError for a name that is taken or that no text
    can hold: lower-case letters, digits and underscores.
    """
    if not (isinstance(kind, type) and issubclass(kind, Elementary)):
        raise TypeError(f"kind must be a subclass of Elementary, got {kind!r}")
    if not re.fullmatch("[a-z][a-z0-9_]*", kind.name) or kind.name == OWN:
        raise ValueError(f"name must be made of lower-case letters, digits and underscores, got {kind.name!r}")
    if kind.name in _REGISTERED:
        raise ValueError(f"kernel name {kind.name!r} is taken")
    _REGISTERED[kind.name] = kind
    return kind


def names() -> list[str]:
    """Registered elementary kernels."""
    return list(_REGISTERED)


def named(name: str, number: float) -> Elementary:
    """The registered kernel of that name, made from its number; raises KeyError for a name that is unknown."""
    return _REGISTERED[name](number)


def registered(kernel: RadialKernel) -> TypeGuard[Elementary]:
    """Whether it is of a registered class, and not merely of a subclass of one."""
    return _REGISTERED.get(kernel.name) is type(kernel)


def elementary(kernel: RadialKernel) -> list[tuple[float, Elementary]]:
    """The terms that are registered kernels."""
    return [(weight, term) for weight, term in kernel.terms() if registered(term)]


def unknown(kernel: RadialKernel, known: Container[str] | None = None) -> str:
    """Classes of the terms that are no registered kernels, or none of these names; empty if there are none."""
    strange = [
        term for _, term in kernel.terms() if not registered(term) or (known is not None and term.name not in known)
    ]
    return ", ".join(type(term).__name__ for term in strange)


def written(kernel: RadialKernel, other: Callable[[RadialKernel], str]) -> str:
    """The text of a kernel, its terms that are not registered as `other` has it; every number survives."""
    parts = []
    for weight, term in kernel.terms():
        text = f"{term.name}:{_digits(term.number)}" if registered(term) else other(term)
        parts.append(text if weight == 1 else f"{_digits(weight)}*{text}")
    return " + ".join(parts)


def _digits(number: float) -> str:
    return f"{number}".removesuffix(".0")  # all its digits; torch.compile cannot trace `repr`, nor !r on Python 3.13


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


@register
@dataclass(frozen=True)
class Riesz(Elementary):
    """k = -|x - y|^r with 0 < r < 2, conditionally positive definite; r = 1 is the energy distance."""

    name: ClassVar[str] = "riesz"
    smooth: ClassVar[bool] = False
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


@dataclass(frozen=True)
class Scaled(Elementary):
    """A kernel with a bandwidth sigma > 0, in the units of the points."""

    sigma: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "sigma", check_number("sigma", self.sigma, low=1 / LARGEST, high=LARGEST))

    @property
    def number(self):
        return self.sigma

    @property
    def bandwidth(self):
        return self.sigma

    def rescaled(self, factor, least=0.0):
        return replace(self, sigma=max(self.sigma * factor, least))


@register
@dataclass(frozen=True)
class Gaussian(Scaled):
    """k = exp(-|x - y|^2 / (2 sigma^2))."""

    name: ClassVar[str] = "gaussian"
    smooth: ClassVar[bool] = True

    @staticmethod
    def profile(order, q, number, code):
        rate = 1 / number**2
        value = _exp(q * (-0.5 * rate))
        if order == "k":
            return value
        return value * -rate if order == "phi" else value * (q * rate) * rate

    def dphi(self, q):
        return self.k(q) * 0.5 / self.sigma**2 / self.sigma**2


@register
@dataclass(frozen=True)
class Laplacian(Scaled):
    """k = exp(-|x - y| / sigma)."""

    name: ClassVar[str] = "laplacian"
    smooth: ClassVar[bool] = False

    @staticmethod
    def profile(order, q, number, code):
        safe = _away_from_zero(q)
        value = _exp(_mask_zero(q, safe.sqrt()) * (-1 / number))
        if order == "k":
            return value
        value, inverse = value * (1 / number), safe.rsqrt()
        return _mask_zero(q, value * -inverse if order == "phi" else value * (1 / number + inverse))


@register
@dataclass(frozen=True)
class InverseMultiquadric(Scaled):
    """k = (1 + |x - y|^2 / sigma^2)^(-1/2)."""

    name: ClassVar[str] = "inverse_multiquadric"
    smooth: ClassVar[bool] = True

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

    @property
    def bandwidth(self):
        return min((kernel.bandwidth for _, kernel in self.components if kernel.bandwidth is not None), default=None)

    def rescaled(self, factor, least=0.0):
        return Mixture(tuple((weight, kernel.rescaled(factor, least)) for weight, kernel in self.components))

    @property
    def smooth(self):
        return all(kernel.smooth for _, kernel in self.components)

    def k(self, q):
        return sum(weight * kernel.k(q) for weight, kernel in self.components)

    def phi(self, q):
        return sum(weight * kernel.phi(q) for weight, kernel in self.components)

    def dphi(self, q):
        return sum(weight * kernel.dphi(q) for weight, kernel in self.components)

    def curvature(self, q):
        return sum(weight * kernel.curvature(q) for weight, kernel in self.components)


def check_kernel(kernel: RadialKernel | None) -> RadialKernel:
    """The kernel, `Riesz(1)` if None; raises TypeError for anything else."""
    if kernel is None:
        return Riesz(1.0)
    if not isinstance(kernel, RadialKernel):
        raise TypeError(f"kernel must be a RadialKernel such as Riesz(1.0), got {type(kernel).__name__}")
    return kernel
