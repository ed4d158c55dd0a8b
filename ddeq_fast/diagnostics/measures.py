"""What can be measured of particles, of F at them, and of gradients. Lengths are in units of the latent space.

Particles are (B, n, d), their masses (B, n), of sum one; results are (B,) in float64 where nothing else is said.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.gradients import jacobian_norm
from ddeq_fast.gradients.linear import beside
from ddeq_fast.solvers import Pushforward
from ddeq_fast.sums.mmd import normalised, squared_mmd


def masses(problem: Pushforward, z: Tensor) -> Tensor:
    """Masses of the particles that move, of sum one; zero for padding and frozen ones."""
    return normalised(problem.measures(z, z)[0].double() * problem.moving(z)[..., 0])


def _mean(z: Tensor, mass: Tensor) -> Tensor:
    return (mass[..., None] * torch.where(mass[..., None] > 0, z.double(), 0)).sum(1)


def extent(z: Tensor, mass: Tensor) -> Tensor:
    """Root mean square distance of particles from zero."""
    return (mass * torch.where(mass > 0, z.double().square().sum(-1), 0)).sum(1).sqrt()


def spread(z: Tensor, mass: Tensor) -> Tensor:
    """Root mean square distance of particles from their mean; zero of a cloud that is one point."""
    return extent(z.double() - _mean(z, mass)[:, None], mass)


def between(z: Tensor, mass: Tensor) -> float:
    """Root mean square distance of the clouds' means from the mean of these; zero of a single cloud."""
    means = _mean(z, mass)
    return float((means - means.mean(0)).square().sum(1).mean().sqrt())


def distance(z: Tensor, y: Tensor, mass: Tensor) -> Tensor:
    """Root mean square distance of each particle of z from the same one of y."""
    return extent(z.double() - y.double(), mass)


def relative_distance(z: Tensor, y: Tensor, mass: Tensor) -> Tensor:
    """`distance` relative to the extent of y; 0 where both are zero."""
    return _ratio(distance(z, y, mass), extent(y, mass))


def relative_mmd(z: Tensor, y: Tensor, mass: Tensor) -> Tensor:
    """Squared MMD (Riesz 1, which is a length) of clouds z and y, relative to that of y and the origin.

    Particles that exchange their places do not count; of two single points it is their relative distance.
    """
    z, y = (torch.where(mass[..., None] > 0, points.double(), 0) for points in (z, y))
    origin = y.new_zeros(len(y), 1, y.shape[2])
    apart = squared_mmd(z, y, x_weights=mass, y_weights=mass).clamp_min(0)
    return _ratio(apart, squared_mmd(y, origin, x_weights=mass).clamp_min(0))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(part > 0, part / whole, 0)


def change(output: Tensor, reference: Tensor) -> float:
    """Norm of the difference of two outputs of a model relative to that of the second, both for the whole batch."""
    output, reference = output.double(), reference.double()
    difference, size = (float(torch.linalg.vector_norm(part)) for part in (output - reference, reference))
    return difference / size if size else math.inf if difference else 0.0


def jacobian_size(problem: Pushforward, z: Tensor, *, probes: int = 4, seed: int = 0) -> Tensor:
    """Root mean square singular value of J = dF/dZ at z, |J|_F / sqrt(n d), from `probes` random directions.

    It is zero where F ignores its particles. See `jacobian_norm`, whose root it is.
    """
    draw = torch.Generator().manual_seed(seed)
    directions = (torch.randn(z.shape, generator=draw, dtype=torch.float64).to(z) for _ in range(probes))
    with torch.no_grad():
        found = [jacobian_norm(problem, z, direction=direction).double() for direction in directions]
    return torch.stack(found).mean(0).sqrt()


def spectral_radius(problem: Pushforward, z: Tensor, *, steps: int = 30, subspace: int = 8, seed: int = 0) -> Tensor:
    """Largest modulus of an eigenvalue of J = dF/dZ at z: below one, z <- F(z) converges from nearby.

    Power iteration on J^T, `steps` products from a random direction, and then the eigenvalues of J^T on the Krylov
    space of dimension `subspace` of where that arrived (Arnoldi 1951), which separates conjugate and opposite pairs.
    """
    _, vjp = problem.linearise(z, reusable=True)
    if vjp is None:
        return z.new_zeros(len(z), dtype=torch.float64)
    product, moving = problem.product(vjp, z), problem.moving(z)

    def transpose(v: Tensor) -> Tensor:
        return (product(v.view(z.shape) * moving) * moving).flatten(1)

    draw = torch.Generator().manual_seed(seed)
    v = (torch.randn(z.shape, generator=draw, dtype=torch.float64).to(z.device) * moving).flatten(1)
    v = _unit(v)
    for _ in range(steps):
        v = _unit(transpose(v))
    size = min(subspace, v.shape[1])
    basis, h = [v], v.new_zeros(len(v), size, size)
    for k in range(size):
        w = transpose(basis[k])
        scale = torch.linalg.vector_norm(w, dim=1)
        w, h[:, : k + 1, k] = beside(basis, w)
        length = torch.linalg.vector_norm(w, dim=1)
        # What is left of a space that J^T maps into itself is rounding, whose eigenvalues say nothing.
        length = torch.where(length > scale * torch.finfo(z.dtype).eps ** 0.5, length, 0)
        if k + 1 < size:
            h[:, k + 1, k] = length
            basis.append(w * torch.where(length > 0, 1 / length, 0)[:, None])
    return torch.linalg.eigvals(h).abs().amax(-1)


def _unit(v: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    return v * torch.where(norm > 0, 1 / norm, 0)


class GradientError(NamedTuple):
    """How far a gradient is from the reference: error, the norm of the difference relative to the reference's, and
    the cosine of the angle between both."""

    error: float
    cosine: float


def gradient_error(gradient: Tensor, reference: Tensor) -> GradientError:
    """Of two gradients of the same parameters, vectors (p,)."""
    gradient, reference = gradient.double(), reference.double()
    return GradientError(
        change(gradient, reference), float(torch.nn.functional.cosine_similarity(gradient, reference, dim=0))
    )
