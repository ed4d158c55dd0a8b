"""Sliced backend: Riesz(1) sums estimated in O(P n log n) from P directions, for millions of particles.

The energy kernel is an average of one-dimensional ones, exactly:

    |x| = c_d E |<theta, x>|,   theta uniform on the sphere,   c_d = sqrt(pi) Gamma((d + 1) / 2) / Gamma(d / 2),

and in one dimension potential and field of a charged cloud are a sort and a prefix sum (Hertrich et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.sums.radial import RadialKernel, Riesz
from ddeq_fast.utils.validation import check_choice, check_integer


class Estimate(NamedTuple):
    """u (B, m), f (B, m, d), and root mean square errors over a cloud's targets, u_error and f_error (B,), float64."""

    u: Tensor
    f: Tensor
    u_error: Tensor
    f_error: Tensor


class Sliced:
    """Potential and field of Riesz(1) from a fixed set of directions, the same in every call.

    Args:
        directions: P >= 1; the error falls as 1 / sqrt(P).
        kind: "random" draws them independently: unbiased. "orthogonal" draws frames of d mutually orthogonal ones:
            unbiased as well, with less variance.
        seed: of the directions.

    It is its own gradient in x and y up to the noise; second derivatives do not exist.
    """

    def __init__(self, directions: int = 64, *, kind: str = "orthogonal", seed: int = 0):
        self.directions = check_integer("directions", directions)
        self.kind = check_choice("kind", kind, ("random", "orthogonal"))
        self.seed = check_integer("seed", seed, low=0)

    def unsupported(self, x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
        """Needs Riesz(1), the kernel that slices into sorted sums."""
        terms = kernel.terms()
        if len(terms) != 1 or terms[0][1] != Riesz(1.0):
            return f"needs Riesz(1), up to a factor, got {kernel!r}"
        return None

    def draw(self, d: int) -> Tensor:
        """The directions (P, d), unit vectors in float64 on the CPU."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.kind == "random":
            normal = torch.randn(self.directions, d, generator=generator, dtype=torch.float64)
            return normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True)
        frames = torch.randn(-(-self.directions // d), d, d, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(frames)
        # Signs of the diagonal make the frames uniform; a line and its reversal are the same direction here.
        return (q * r.diagonal(dim1=1, dim2=2).sign()[:, None]).mT.reshape(-1, d)[: self.directions]

    def evaluate(
        self, x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """See `Backend.evaluate`."""
        weight = kernel.terms()[0][0]
        u, f = self._means(x, y, v, potential, field)
        return ((weight * u).to(x.dtype) if potential else None), ((weight * f).to(x.dtype) if field else None)

    def _means(self, x: Tensor, y: Tensor, v: Tensor, potential: bool, field: bool) -> tuple[Tensor, Tensor]:
        """Sums of Riesz(1), of no meaning where they are not wanted."""
        factor = _constant(x.shape[2]) / self.directions
        u = torch.zeros_like(x[..., 0], dtype=torch.float64)
        f = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for theta, u_line, f_line in self._lines(x, y, v, potential, field):
            if potential:
                u += u_line
            if field:
                f += f_line[..., None] * theta
        return factor * u, factor * f

    def tangent(
        self, x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel
    ) -> tuple[Tensor, Tensor]:
        """Sliced fields are steps along each direction: there is no second derivative to return."""
        raise ValueError("backend 'sliced' has no second derivatives: use another one for Hessians")

    def estimate(self, x: Tensor, y: Tensor, v: Tensor) -> Estimate:
        """Both sums of Riesz(1) on batched clouds (see `Backend`) with their estimated errors.

        Errors are standard errors over the directions, taken as independent: an upper bound for orthogonal ones.
        Needs P >= 2.
        """
        if self.directions < 2:
            raise ValueError(f"directions must be at least 2 for an estimate of the error, got {self.directions}")
        u, f = (mean.to(x.dtype) for mean in self._means(x, y, v, True, True))
        factor = _constant(x.shape[2])
        u_spread, f_spread = (torch.zeros(x.shape[0], dtype=torch.float64, device=x.device) for _ in range(2))
        for theta, u_line, f_line in self._lines(x, y, v, True, True):
            u_spread += (factor * u_line - u).double().square().mean(1)
            f_spread += (factor * f_line[..., None] * theta - f).double().square().sum(2).mean(1)
        scale = self.directions * (self.directions - 1)
        return Estimate(u, f, (u_spread / scale).sqrt(), (f_spread / scale).sqrt())

    def _lines(
        self, x: Tensor, y: Tensor, v: Tensor, potential: bool, field: bool
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each direction: it (d,), and what `_line` returns of the points on it."""
        same = x is y or (x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride())
        for theta in self.draw(x.shape[2]).to(x):
            s = y @ theta
            yield theta, *_line(s if same else x @ theta, s, v, potential, field)


def _constant(d: int) -> float:
    """c_d of the module's docstring."""
    return math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))


def _line(t: Tensor, s: Tensor, v: Tensor, potential: bool, field: bool) -> tuple[Tensor, Tensor]:
    """-sum_j v_j |t_i - s_j| and its derivative -sum_j v_j sign(t_i - s_j), (B, m), of charges v at s (B, n).

    An empty tensor stands for one that is not wanted.
    """
    ordered, order = s.sort(1)
    # Targets in order walk through memory once, where a search at random would jump.
    t, place = (ordered, order) if t is s else t.sort(1)
    s = ordered
    v = v.gather(1, order).double()
    charge = torch.nn.functional.pad(v.cumsum(1), (1, 0))
    below = torch.searchsorted(s, t)
    u = f = t.new_empty(0)
    before, total = charge.gather(1, below), charge[:, -1:]
    if potential:
        moment = torch.nn.functional.pad((v * s).cumsum(1), (1, 0))
        u = -(t * (2 * before - total) - (2 * moment.gather(1, below) - moment[:, -1:]))
        u = torch.empty_like(u).scatter_(1, place, u)
    if field:
        up_to = charge.gather(1, torch.searchsorted(s, t, right=True))
        f = total - before - up_to
        f = torch.empty_like(f).scatter_(1, place, f)
    return u, f
