"""Linear systems of gradients, solved sample by sample from products alone: fixed points, Anderson, GMRES, conjugate
gradients.

Right-hand sides and solutions are (B, n, d), residuals (B,) in float64 and relative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.solvers.anderson import empty_history, mix

Product = Callable[[Tensor], Tensor]


class Options(NamedTuple):
    """Most products; the residual at which a sample is done; iterates that Anderson acceleration keeps."""

    max_steps: int
    tol: float
    depth: int


def _relative(residual: Tensor, g0: Tensor) -> Tensor:
    """Norm of each sample's residual over that of its right-hand side; 0 where both vanish."""
    norm, scale = (torch.linalg.vector_norm(t.flatten(1).double(), dim=1) for t in (residual, g0))
    return torch.where(norm > 0, norm / scale, 0)


def fixed_point(transpose: Product, g0: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The limit of g <- g0 + J^T g, for contractions: the best iterate of each sample, and its residual."""
    return _iterate(transpose, g0, options, None)


def anderson(transpose: Product, g0: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """`fixed_point`, accelerated."""
    return _iterate(transpose, g0, options, options.depth)


def _iterate(transpose: Product, g0: Tensor, options: Options, depth: int | None) -> tuple[Tensor, Tensor]:
    g = best = g0
    best_residual = g0.new_full((len(g0),), torch.inf, dtype=torch.float64)
    history = None if depth is None else empty_history(g0, depth)
    for step in range(options.max_steps):
        image = g0 + transpose(g)
        residual = _relative(image - g, g0)
        # A sample that is done stays as it is, whatever others it shares the batch with.
        better = (residual < best_residual) & (best_residual > options.tol)
        best = torch.where(better[:, None, None], g, best)
        best_residual = torch.where(better, residual, best_residual)
        if bool((best_residual <= options.tol).all()):
            break
        if history is None:
            g = image
        else:
            g, history = mix(g, image, history, step, 1.0, 1e-12)
    return best, best_residual


def gmres(transpose: Product, g0: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Batched GMRES (Saad & Schultz 1986) for (I - J^T) g = g0, started at g0, without restarts.

    Samples share the number of steps; one whose Krylov space is exhausted simply stops gaining directions.
    """
    batch, shape = len(g0), g0.shape
    r0 = transpose(g0).flatten(1)  # g0 - (I - J^T) g0
    scale = torch.linalg.vector_norm(r0, dim=1)
    basis = [r0 * torch.where(scale > 0, 1 / scale, 0)[:, None]]
    steps = min(options.max_steps - 2, r0.shape[1])  # one product went into r0, one certifies the result
    if steps < 1:
        return g0, _relative(r0.view(shape), g0)
    h = g0.new_zeros(batch, steps + 1, steps)
    right = g0.new_zeros(batch, steps + 1, 1)
    right[:, 0, 0] = scale
    norm_g0 = torch.linalg.vector_norm(g0.flatten(1), dim=1)
    for k in range(steps):
        v, h[:, : k + 1, k] = beside(basis, basis[k] - transpose(basis[k].view(shape)).flatten(1))
        length = torch.linalg.vector_norm(v, dim=1)
        h[:, k + 1, k] = length
        basis.append(v * torch.where(length > 1e-14 * scale, 1 / length, 0)[:, None])
        block = h[:, : k + 2, : k + 1]
        weights = torch.linalg.pinv(block) @ right[:, : k + 2]
        residual = torch.linalg.vector_norm((block @ weights - right[:, : k + 2]).squeeze(-1), dim=1)
        if bool((residual <= options.tol * norm_g0).all()):
            break
    g = g0 + (torch.stack(basis[: weights.shape[1]], -1) @ weights).view(shape)
    return g, _relative(g0 + transpose(g) - g, g0)


def beside(basis: list[Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of v (B, size) beside orthonormal vectors of that shape, and its overlaps with these, (B, k).

    By Gram-Schmidt, twice: orthogonal to working precision.
    """
    overlaps = v.new_zeros(len(v), len(basis))
    for _ in range(2):
        for j, q in enumerate(basis):
            overlap = (q * v).sum(1)
            overlaps[:, j] += overlap
            v = v - overlap[:, None] * q
    return v, overlaps


METHODS = {"fixed_point": fixed_point, "anderson": anderson, "gmres": gmres}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)[:, None, None]


def conjugate_gradients(operator: Product, right: Tensor, max_steps: int, tol: float) -> tuple[Tensor, Tensor]:
    """Solve operator(x) = right sample by sample (Hestenes & Stiefel 1952): x and its relative residuals."""
    x, residual = torch.zeros_like(right), right
    direction, norm = residual, _dot(residual, residual)
    scale = torch.where(norm > 0, norm, 1)
    for _ in range(max_steps):
        if bool((norm <= tol**2 * scale).all()):
            break
        image = operator(direction)
        curvature = _dot(direction, image)
        # A sample that is done stays as it is, whatever others it shares the batch with.
        step = torch.where((curvature > 0) & (norm > tol**2 * scale), norm / curvature, 0)
        x, residual = x + step * direction, residual - step * image
        previous, norm = norm, _dot(residual, residual)
        direction = residual + torch.where(previous > 0, norm / previous, 0) * direction
    return x, (norm / scale).sqrt().double().flatten()
