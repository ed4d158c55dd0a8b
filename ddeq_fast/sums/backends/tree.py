"""Tree backend: sums in O(m + n) to a tolerance, for large clouds of at most three dimensions on the CPU.

Far cells of points act on each other through polynomials, near points are summed outright: the black-box fast multipole
method (Fong and Darve 2009), by the package ferreus-bbfmm. Every result is compared with exact sums at some targets.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddeq_fast.sums.backends import compiled, costs, dense, sampled
from ddeq_fast.sums.radial import Elementary, RadialKernel, Riesz, elementary, unknown
from ddeq_fast.utils.optional import available, install, require
from ddeq_fast.utils.validation import check_number

MAX_DIMENSION = 3
FIELDS = ("riesz", "gaussian")
NAMES = (*FIELDS, "laplacian", "inverse_multiquadric")
# The larger error of potential and field at each order, which is the number of nodes a coordinate: the worst of all
# kernels, with bandwidths 1 and 0.1, on normal clouds and on their cubes with a dense spot (20,000 points, charges of
# both signs, against exact sums at 300 targets). By dimension.
ERRORS: dict[int, dict[int, float]] = {
    1: {4: 7e-3, 6: 3e-4, 8: 1e-5, 10: 4e-7, 12: 2e-8},
    2: {4: 4e-3, 6: 3e-4, 8: 6e-6, 10: 4e-7, 12: 1e-8},
    3: {3: 2e-2, 4: 2e-3, 5: 5e-4, 6: 7e-5, 7: 5e-6, 8: 6e-7},
}
# A sum that is not good enough is done again at the next order, so often at most, and then exactly.
TRIES = 2
# Targets at which a result is compared with exact sums: so many at random, and of those with the largest values.
SAMPLE, LARGEST = 96, 8
# The error found there may be so large a part of the tolerance: it is itself an estimate.
MARGIN = 0.5
# Clouds wider than so many bandwidths are summed exactly: squares of distances, in bandwidths, must be numbers.
WIDEST = 1e100
LARGEST_TOLERANCE = 0.09
LEAST = 1e-7  # tolerance: errors at the highest orders in three dimensions
# Riesz kernels know no scale: clouds are stretched to this size, for the package takes points nearer than 1e-8 as one.
# Stretched to 1e12 its cells lose points.
WIDTH = 1e6


class Tree:
    """Potential and field of Riesz(1), Gaussian, Laplacian and inverse multiquadric kernels, and of their mixtures.

    Args:
        tolerance: between 1e-7 and 0.1, of the errors |u - u*| / |u*| and |f - f*| / |f*| of each cloud, where u* and
            f* are exact and the norms run over its targets: single ones may be worse, and so may sums that nearly
            cancel at all targets, whose tolerance is harder to meet.

    The order of the polynomials follows from the tolerance (`ERRORS`). Each result is compared with exact sums at about
    a hundred targets, at random and where values are largest; if the error found there is more than half the tolerance
    the sum is done again at higher orders, and exactly, with a RuntimeWarning, if that does not help.

    Summed exactly from the start: clouds so small that it is faster, points that are no numbers, fields of Laplacian
    and inverse multiquadric kernels (the package has only their potentials), second derivatives.
    """

    def __init__(self, tolerance: float = 1e-3):
        self.tolerance = check_number("tolerance", tolerance, low=LEAST, high=0.1)

    def unsupported(self, x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
        """Needs CPU tensors in single or double precision with d <= 3, kernels that it knows, and the package."""
        if x.device.type != "cpu":
            return f"needs tensors on the CPU, got {x.device.type}"
        if x.dtype not in (torch.float32, torch.float64):
            return f"needs float32 or float64, got {x.dtype}"
        if x.shape[-1] > MAX_DIMENSION:
            return f"needs d <= {MAX_DIMENSION}, got d = {x.shape[-1]}"
        if strange := unknown(kernel, NAMES):
            return f"has no tree for the kernel {strange}"
        if any(isinstance(term, Riesz) and term.r != 1 for _, term in kernel.terms()):
            return f"needs exponent 1 of Riesz kernels, got {kernel!r}"
        if not available("ferreus_bbfmm"):
            return f"needs ferreus-bbfmm: {install('large')}"
        return None

    def to_tolerance(self, tolerance: float) -> Tree:
        """The same within another tolerance, any one above 1e-7."""
        return _within(min(tolerance, LARGEST_TOLERANCE))

    def cheaper(self, tolerance: float, x: Tensor, y: Tensor, kernel: RadialKernel) -> bool:
        """Whether a sum within this tolerance is faster than an exact one, by the table of costs."""
        if tolerance <= LEAST or torch.compiler.is_compiling():
            return False
        return self.unsupported(x, y, kernel) is None and _pays(x, y, kernel)

    def evaluate(
        self, x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """See `Backend.evaluate`."""
        x, y, v = x.detach(), y.detach(), v.detach()
        if not _pays(x, y, kernel) or (field and not all(term.name in FIELDS for _, term in kernel.terms())):
            return _exact(x, y, v, kernel, potential, field)
        clouds = [self._cloud(*cloud, kernel, potential, field) for cloud in zip(x, y, v, strict=True)]
        u, f = zip(*clouds, strict=True)
        return (torch.stack(u) if potential else None), (torch.stack(f) if field else None)

    def tangent(
        self, x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel
    ) -> tuple[Tensor, Tensor]:
        """Exact: see `Backend.tangent`."""
        return _exact_backend(x, y, kernel).tangent(x, y, v, s, t, kernel)

    def _cloud(self, x: Tensor, y: Tensor, v: Tensor, kernel, potential: bool, field: bool):
        """One cloud of targets x (m, d), sources y (n, d) and charges v (n,)."""
        charged = v != 0
        if not charged.any():
            return torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        found = self._to_tolerance(x.double(), y[charged].double(), v[charged].double(), kernel, potential, field)
        if found is None:
            exact = _exact(x[None], y[None], v[None], kernel, potential, field)
            found = [part if part is None else part[0] for part in exact]
        return [part if part is None else part.to(x.dtype) for part in found]

    def _to_tolerance(self, x: Tensor, y: Tensor, v: Tensor, kernel, potential: bool, field: bool):
        """(u, f) in float64; None if they cannot be had by trees."""
        centre = (y.amin(0) + y.amax(0)) / 2
        x, y = x - centre, y - centre
        size = float(torch.cat([x, y]).abs().max())
        bandwidth = kernel.bandwidth
        if not (0 < size < math.inf and v.isfinite().all()) or (bandwidth is not None and size / bandwidth > WIDEST):
            return None
        check = _Check(x, y, v, kernel, (potential, field), self.tolerance * MARGIN)
        for order in self._orders(x.shape[1]):
            u, f = _sums(x, y, v, kernel, order, size, potential, field)
            if check.passes(u, f):
                return u, f
        _warn_once(f"a result was not within the tolerance {self.tolerance:g} at the highest order")
        return None

    def _orders(self, d: int) -> list[int]:
        """Orders to try in turn: the first is within the tolerance on the worst of clouds, and better on most."""
        orders = list(ERRORS[d])
        first = next((i for i, order in enumerate(orders) if ERRORS[d][order] <= self.tolerance), len(orders) - 1)
        return orders[first : first + TRIES + 1]


@functools.lru_cache(maxsize=64)
def _within(tolerance: float) -> Tree:
    return Tree(tolerance)


def _pays(x: Tensor, y: Tensor, kernel: RadialKernel) -> bool:
    """Whether a tree is faster than exact sums, by the table of costs."""
    shape = x.shape[0], x.shape[1], y.shape[1], x.shape[2]
    exactly = costs.call_seconds(_exact_name(x, y, kernel), shape, kernel, x.dtype)
    return exactly is not None and costs.tree_seconds(shape, kernel) < exactly


def _exact_name(x: Tensor, y: Tensor, kernel: RadialKernel) -> str:
    return "compiled" if costs.worthwhile("compiled", x, y, kernel) else "dense"


def _exact_backend(x: Tensor, y: Tensor, kernel: RadialKernel):
    return {"compiled": compiled, "dense": dense}[_exact_name(x, y, kernel)]


def _exact(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
    return _exact_backend(x, y, kernel).evaluate(x, y, v, kernel, potential, field)


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"the tree backend falls back to exact sums: {reason}", RuntimeWarning, stacklevel=6)


class _Check:
    """Compares sums (m,) and (m, d) of one cloud with exact ones at some targets."""

    def __init__(
        self, x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, wanted: tuple[bool, bool], allowed: float
    ):
        self.x, self.allowed = x, allowed
        clouds = x[None], y[None], v[None]
        exact = _exact_backend(clouds[0][:, :SAMPLE], clouds[1], kernel)
        self._sample = functools.partial(sampled.Sample, exact.evaluate, kernel, clouds, wanted=wanted)
        self.chance = self._sample(sampled.some(len(x), SAMPLE, seed=0))

    def passes(self, u: Tensor | None, f: Tensor | None) -> bool:
        """Whether the errors of those sums that are wanted are within the tolerance."""
        wanted = [part for part in (u, f) if part is not None]
        # Errors that are rare and large are where values or coordinates are.
        large = [part.reshape(len(part), -1).square().sum(1).topk(min(LARGEST, len(part))).indices for part in wanted]
        rare = torch.cat([*large, self.x.argmin(0), self.x.argmax(0)]).unique()
        found = [None if part is None else part[None] for part in (u, f)]
        share = (len(rare) / len(self.x)) ** 0.5  # as if all others were right
        offs = zip(wanted, self.chance.off(found), self._sample(rare).off(found), strict=True)
        return all(bool(torch.maximum(a, share * b) <= self.allowed * sampled.mean(part[None])) for part, a, b in offs)


def _sums(x: Tensor, y: Tensor, v: Tensor, kernel, order: int, size: float, potential: bool, field: bool):
    """(u, f) of a mixture, of points within `size` of zero."""
    u, f = (torch.zeros_like(x[:, 0]) if potential else None), (torch.zeros_like(x) if field else None)
    for weight, term in elementary(kernel):
        u_term, f_term = _term(x, y, v, term, order, size, field)
        if u is not None:
            u += weight * u_term
        if f is not None:
            f += weight * f_term
    return u, f


def _term(x: Tensor, y: Tensor, v: Tensor, term: Elementary, order: int, size: float, field: bool):
    """(u, f) of one kernel, f None if it is not wanted. The package's kernels have scales of their own."""
    sigma = term.number
    if term.name == "riesz":  # -r
        stretch = WIDTH / size
        u, f = _fmm("LinearRbf", x * stretch, y * stretch, v[:, None], order, field)
        return u[:, 0] / stretch, f
    if term.name == "laplacian":  # exp(-3 r)
        return _fmm("ExponentialRbf", x / (3 * sigma), y / (3 * sigma), v[:, None], order, False)[0][:, 0], None
    if term.name == "gaussian":  # exp(-3 r^2); its field is made of sums: sum_j v_j k (y_j - x) / sigma^2
        scale = 1 / (math.sqrt(6) * sigma)
        charges = torch.cat([v[:, None], v[:, None] * (y / sigma)], 1) if field else v[:, None]
        u, _ = _fmm("GaussianRbf", x * scale, y * scale, charges, order, False)
        return u[:, 0], ((u[:, 1:] - u[:, :1] * (x / sigma)) / sigma if field else None)
    rate = 1 / (6.5 * sigma)  # 1 / sqrt(1 + 6.5^2 r^2)
    return _fmm("InverseMultiquadraticRbf", x * rate, y * rate, v[:, None], order, False)[0][:, 0], None


def _fmm(kind: str, x: Tensor, y: Tensor, charges: Tensor, order: int, field: bool) -> tuple[Tensor, Any]:
    """Sums (m, k) of k columns of charges and, if wanted, the gradient (m, d) of one, by the package."""
    library = require("ferreus_bbfmm", "large")
    targets, sources, weights = (np.ascontiguousarray(part.numpy()) for part in (x, y, charges))
    low, high = (np.minimum(targets.min(0), sources.min(0)), np.maximum(targets.max(0), sources.max(0)))
    # Operators are left whole: compressed ones lose digits at high orders.
    settings = library.FmmParams(256, library.M2LCompressionType.None_, 10.0**-order, 1024)
    kernel = library.KernelParams(getattr(library.FmmKernelType, kind))
    tree = library.FmmTree(sources, order, kernel, False, extents=np.concatenate([low, high]), params=settings)
    tree.set_weights(weights)
    if not field:
        return torch.from_numpy(tree.evaluate(weights, targets).reshape(len(x), -1)), None
    u, f = tree.evaluate_with_gradients(weights, targets)
    return torch.from_numpy(u.reshape(len(x), -1)), torch.from_numpy(f.reshape(x.shape))
