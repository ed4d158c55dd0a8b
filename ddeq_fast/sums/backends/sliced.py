"""Sliced backend: sums estimated in O(P n log n) from P directions, in any dimension, for millions of particles.

Radial kernels are averages of one-dimensional ones over directions (Hertrich 2024): Riesz(1) of -|t|, summed exactly by
sorting, others of Fourier series (`spectra`), summed on a grid (`lines`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.sums.backends import dense, lines, sampled, spectra
from ddeq_fast.sums.backends import directions as axes
from ddeq_fast.sums.radial import Elementary, RadialKernel, Riesz, elementary, unknown
from ddeq_fast.utils.validation import check_flag, check_integer, check_pair
from ddeq_fast.utils.warning import warn

# Independent rotations that an estimate of the error takes.
REPLICATES = 8
# Frequencies of a series: as many as there are points, within these bounds, for spectra that do not end.
LEAST, MOST = 1 << 12, 1 << 17
# Results are compared with exact sums at so many targets; an error of so large a part of the sums is worth a warning.
SAMPLE, POOR = 48, 0.1
ONE_BY_ONE = 16
# Kernels with a cusp need a bandwidth that is so many times one over the highest frequency.
RESOLVED = 8.0


class Estimate(NamedTuple):
    """u (B, m), f (B, m, d), and root mean square errors over a cloud's targets, u_error and f_error (B,), float64."""

    u: Tensor
    f: Tensor
    u_error: Tensor
    f_error: Tensor


class Sliced:
    """Potential and field from a fixed set of directions, the same in every call.

    Args:
        directions: P >= 1, a design (see `directions`) that is rotated at random: unbiased for Riesz(1), Gaussian and
            inverse multiquadric kernels.
        seed: of the rotation.
        checked: compare every result with exact sums at some targets, of n pairs each, and warn of a poor one. A loop
            over sums of one kind does better to `check` some of them.
        share: (i, k): sum along every k-th direction from the i-th on alone, unchecked. These k parts, which as many
            processes may sum, add up to the result.

    Relative errors of fields of Riesz(1) on normal clouds, norm-wise, with 64 directions: 1e-3 for d = 2, 3e-3 for
    d = 3, 3e-2 for d = 10. For d > 1 smooth kernels much narrower than the cloud need more; Laplacian kernels and Riesz
    kernels but Riesz(1) are smoothed at the scale of a grid, about a 1e-4 of the cloud's width, and fields of Riesz(r)
    with r <= 1/2 converge slowly: their average over directions has no variance that is finite. `estimate` tells.

    It is its own gradient in x and y up to the noise. Second derivatives exist for smooth kernels.
    """

    rough = True

    def __init__(self, directions: int = 64, *, seed: int = 0, checked: bool = True, share: tuple[int, int] = (0, 1)):
        self.directions = check_integer("directions", directions)
        self.seed = check_integer("seed", seed, low=0)
        part, parts = check_pair("share", share, "(i, k)")
        self.share = check_integer("share", part, low=0, high=check_integer("share", parts) - 1), parts
        self.checked = check_flag("checked", checked) and parts == 1

    def unsupported(self, x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
        """Needs kernels whose one-dimensional ones are known."""
        if strange := unknown(kernel, spectra.NAMES):
            return f"has no slices of the kernel {strange}"
        curved = [term for _, term in kernel.terms() if term != Riesz(1.0) and term.name not in spectra.SMOOTH]
        if curved and x.shape[-1] == 1:
            return f"needs more than one dimension for {curved[0]}, which a grid would smooth"
        return None

    def evaluate(
        self, x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """See `Backend.evaluate`. Raises ValueError for bandwidths that the grid does not resolve."""
        directions = self._draw(x.shape[2], self._generator())
        u, f = _Sums(x, y, v, kernel).mean(self._own(directions), len(directions), potential, field)
        found = u if potential else None, f if field else None
        if self.checked:
            self.check(found, x, y, v, kernel)
        return (u.to(x.dtype) if potential else None), (f.to(x.dtype) if field else None)

    @staticmethod
    def check(
        found: tuple[Tensor | None, Tensor | None], x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel
    ) -> None:
        """Warn if potentials or fields that were found, None for one that was not, are poor at some targets.

        That is, off by more than a tenth of the sums of charges |v|.
        """
        wanted = found[0] is not None, found[1] is not None
        sample = sampled.Sample(dense.evaluate, kernel, (x, y, v), sampled.some(x.shape[1], SAMPLE), wanted)
        _warn_if_poor(sample, found, kernel, x.shape[2])

    def tangent(
        self, x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.tangent`. Raises ValueError for kernels with a cusp, sliced fields of which have steps."""
        if not all(term.name in spectra.SMOOTH for _, term in kernel.terms()):
            raise ValueError(
                f"backend 'sliced' has no second derivatives of {kernel!r}, which has a cusp: use another one for them"
            )
        directions = self._draw(x.shape[2], self._generator())
        du, df = _Sums(x, y, v, kernel).tangent(self._own(directions), len(directions), s, t)
        if self.checked:
            at = sampled.some(x.shape[1], SAMPLE)
            sample = sampled.Sample(dense.tangent, kernel, (x, y, v), at, moves=(s, t))
            _warn_if_poor(sample, (du, df), kernel, x.shape[2])
        return du.to(x.dtype), df.to(x.dtype)

    def estimate(self, x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel | None = None) -> Estimate:
        """Both sums on batched clouds (see `Backend`), of Riesz(1) if the kernel is None, with their estimated errors.

        Of all directions, whatever the share.

        The mean of eight designs of P directions each, independently rotated; errors are the standard errors of that
        mean or, of kernels that a grid smooths, the errors found at `SAMPLE` targets if they are larger.

        Raises ValueError for kernels that cannot be sliced.
        """
        kernel = Riesz(1.0) if kernel is None else kernel
        if reason := self.unsupported(x, y, kernel):
            raise ValueError(f"kernel cannot be sliced: the backend {reason}")
        sums, generator = _Sums(x, y, v, kernel), self._generator()
        drawn = [self._draw(x.shape[2], generator) for _ in range(REPLICATES)]
        parts = [sums.mean(theta, len(theta), True, True) for theta in drawn]
        u, f = (torch.stack(part) for part in zip(*parts, strict=True))
        scale = REPLICATES * (REPLICATES - 1)
        squares = [_mean_square(part - part.mean(0)).sum(0) / scale for part in (u[..., None], f)]
        means = u.mean(0), f.mean(0)
        if sums.smoothed:
            sample = sampled.Sample(dense.evaluate, kernel, (x, y, v), sampled.some(x.shape[1], SAMPLE))
            squares = [torch.maximum(one, off.square()) for one, off in zip(squares, sample.off(means), strict=True)]
        units = (
            bound + torch.finfo(x.dtype).eps * sampled.mean(m) for bound, m in zip(sums.rounding(), means, strict=True)
        )
        errors = (square.double().sqrt() + unit for square, unit in zip(squares, units, strict=True))
        return Estimate(*(mean.to(x.dtype) for mean in means), *errors)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _draw(self, d: int, generator: torch.Generator) -> Tensor:
        """Directions (P, d); on a line there is one."""
        return axes.draw(self.directions if d > 1 else 1, d, generator)

    def _own(self, directions: Tensor) -> Tensor:
        return directions[self.share[0] :: self.share[1]]


def _mean_square(values: Tensor) -> Tensor:
    """Of vectors (..., m, d) over the m targets."""
    return values.square().sum(-1).mean(-1)


def frequencies(points: int) -> int:
    """Of a series for kernels with a cusp, at the least."""
    return min(max(points, LEAST), MOST)


class _Sums:
    """Sums of one kernel along the lines of directions, averaged, of batched clouds.

    Attributes:
        smoothed: the kernel has terms that the grid smooths.
        radius: of a ball around zero that holds the clouds.

    Raises ValueError for bandwidths that the grid does not resolve.
    """

    def __init__(self, x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel):
        same = x is y or (x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride())
        x, y = (part.to(torch.promote_types(x.dtype, torch.float32)) for part in (x, y))
        centre, radius = _extent(x, y, v)
        self.radius = radius + float(torch.linalg.vector_norm(centre, dim=2).max())
        self.x, self.y, self.v = x, x if same else y, v.double()
        terms = elementary(kernel)
        self.sorted = float(sum(weight for weight, term in terms if term == Riesz(1.0))) * spectra.sphere_constant(
            x.shape[2], 1.0
        )
        rest = [(weight, term) for weight, term in terms if term != Riesz(1.0)]
        self.smoothed = any(term.name not in spectra.SMOOTH for _, term in rest)
        self.grid: lines.Grid | None = None
        self.at_zero = 0.0
        if not rest:  # points as they were given, for centring would round them
            return
        self.x = x - centre
        # Padding may lie anywhere, but off the grid.
        self.y = self.x if same else (y - centre).masked_fill((v == 0)[..., None], 0)
        if not math.isfinite(radius):  # the sums are no numbers either
            radius, self.v = 1.0, torch.full_like(self.v, torch.nan)
            self.x, self.y = torch.zeros_like(self.x), torch.zeros_like(self.y)
        # A cloud that is small beside the bandwidth needs no finer look.
        width = max([2.0002 * radius, *(term.bandwidth / 2 for _, term in rest if term.bandwidth is not None)]) or 1.0
        number = self._frequencies(rest, width, max(x.shape[1], y.shape[1]))
        b = spectra.series(rest, x.shape[2], width, number)
        self.grid = lines.Grid(b, spectra.PERIOD * width, x.device)
        if same:  # points on themselves, which the grid would smooth
            zero = torch.zeros((), dtype=torch.float64)
            self.at_zero = sum(weight * float(term.k(zero)) for weight, term in rest) - float(b.sum())

    def _frequencies(self, terms: list[tuple[float, Elementary]], width: float, points: int) -> int:
        """A power of two: enough for spectra that end, and for others as many as there are points."""
        needed = max(_highest(term, self.x.shape[2]) for _, term in terms) * spectra.PERIOD * width / (2 * math.pi)
        if needed > MOST:
            raise ValueError(
                f"backend 'sliced' needs wider kernels or smaller clouds: {terms!r} on points {width:.3g} apart"
            )
        least = max(needed, 2 * spectra.LOW)
        if self.smoothed:
            least = max(2 * needed, frequencies(points))
        return 1 << math.ceil(math.log2(least))

    def rounding(self) -> tuple[Tensor, Tensor]:
        """About what rounding of points and the window of a grid may do to potentials and fields, (B,)."""
        unit = torch.finfo(self.x.dtype).eps
        bounds = (0.0, 0.0) if self.grid is None else self.grid.bounds()
        charge = self.v.abs().sum(1)
        return charge * (unit * abs(self.sorted) * self.radius + bounds[0]), charge * (
            unit * abs(self.sorted) + bounds[1]
        )

    def mean(self, directions: Tensor, number: int, potential: bool, field: bool) -> tuple[Tensor, Tensor]:
        """Potentials (B, m) in float64, and fields (B, m, d): what these directions of `number` add to their average.

        Of no meaning where they are not wanted.
        """
        u, f = torch.zeros_like(self.x[..., 0], dtype=torch.float64), torch.zeros_like(self.x)
        for theta in directions.to(self.x):
            s = _projected(self.y, theta)
            t = s if self.x is self.y else _projected(self.x, theta)
            if self.sorted:
                u_line, f_line = lines.riesz(t, s, self.v, potential, field)
                self._add(theta, self.sorted, u_line, f_line, u, f)
            if self.grid is not None:
                spectrum = self.grid.spread(s, self.v)
                found = self.grid.read(spectrum, t, *([0] if potential else []), *([1] if field else []))
                self._add(theta, 1.0, found[0] if potential else u[:0], found[-1] if field else u[:0], u, f)
        u, f = u / number, f / number
        return (u + self.at_zero * len(directions) / number * self.v if self.at_zero else u), f

    @staticmethod
    def _add(theta: Tensor, factor: float, u_line: Tensor, f_line: Tensor, u: Tensor, f: Tensor) -> None:
        if u_line.numel():
            u += factor * u_line
        if f_line.numel():
            f += factor * f_line[..., None] * theta

    def tangent(self, directions: Tensor, number: int, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of `mean` as x moves along s and y along t, of kernels that have a grid alone."""
        du, df = torch.zeros_like(self.x[..., 0], dtype=torch.float64), torch.zeros_like(self.x)
        grid = self.grid
        assert grid is not None
        for theta in directions.to(self.x):
            place, origin, own, other = (_projected(part.to(theta), theta) for part in (self.x, self.y, s, t))
            still, moved = grid.spread(origin, self.v), grid.spread(origin, self.v * other)
            (slope, bend), (slope_moved, bend_moved) = grid.read(still, place, 1, 2), grid.read(moved, place, 1, 2)
            du += own * slope - slope_moved
            df_line = own * bend - bend_moved
            df += df_line[..., None] * theta
        return du / number, df / number


def _projected(x: Tensor, theta: Tensor) -> Tensor:
    """<x, theta>, (B, m): in few dimensions the same for a point in any cloud, as products of matrices are not."""
    if len(theta) > ONE_BY_ONE:
        return x @ theta
    total = x[..., 0] * theta[0]
    for k in range(1, len(theta)):
        total = total + x[..., k] * theta[k]
    return total


def _warn_if_poor(sample: sampled.Sample, found: tuple[Tensor | None, ...], kernel: RadialKernel, d: int) -> None:
    errors = zip(sample.off(found), sample.uncancelled(), strict=True)
    if any(((off > POOR * whole) & (whole > 0)).any() for off, whole in errors):
        warn(
            f"sliced sums of {kernel} in {d} dimensions are off by more than {POOR:.0%}: take more directions, a wider "
            "kernel or another backend",
            RuntimeWarning,
        )


def _highest(term: Elementary, d: int) -> float:
    """The frequency that a grid must have for this term; none of Riesz kernels, which have no scale."""
    if term.name in spectra.SMOOTH:
        return spectra.highest(term, d)
    return 0.0 if term.bandwidth is None else RESOLVED / term.bandwidth


def _extent(x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, float]:
    """Middles (B, 1, d) of clouds, of targets and of sources that are charged, and the largest radius around one."""
    charged = (v != 0)[..., None]
    high = torch.maximum(x.amax(1), y.masked_fill(~charged, -torch.inf).amax(1))
    low = torch.minimum(x.amin(1), y.masked_fill(~charged, torch.inf).amin(1))
    centre = ((high + low) / 2)[:, None]
    reach = [part.double().square().sum(-1) for part in (x - centre, (y - centre).masked_fill(~charged, 0))]
    return centre, float(torch.cat(reach, 1).max()) ** 0.5
