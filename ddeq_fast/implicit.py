"""Backward passes: gradients at a fixed point Z* = F(Z*, context), at a cost independent of the forward steps.

A backward takes the detached solution and returns the same particles (or a damped image of them) with an
autograd graph through a few evaluations of F:

* `Phantom`: unrolls k damped steps from Z* (Geng et al. 2021).
* `ImplicitFunction`: the implicit function theorem, dZ* = (I - J)^-1 dF, with the transposed system solved
  iteratively when the gradient arrives (Bai et al. 2019).

`jacobian_norm` measures how contractive F is there, to be penalised in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddeq_fast.solvers.anderson import empty_history, mix
from ddeq_fast.solvers.iterate import warn_of
from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.validation import check_choice, check_integer, check_number, check_share


@dataclass
class BackwardInfo:
    """Filled in when the backward pass runs: evaluations of J^T, and the relative residual of each sample.

    For g = g0 + J^T g the residual is |g0 + J^T g - g| / |g0|, (B,), float64.
    """

    evaluations: int = 0
    residual: Tensor | None = field(default=None, repr=False)


class Backward:
    """Anything with `attach(problem, z) -> (tracked z, BackwardInfo)`."""

    def attach(self, problem: Pushforward, z: Tensor) -> tuple[Tensor, BackwardInfo]:
        """Give the detached solution z (B, n, d) a graph; called with gradients enabled."""
        raise NotImplementedError


class Phantom(Backward):
    """Phantom gradient: `steps` tracked steps Z <- (1 - damping) Z + damping F(Z) from the solution.

    Args:
        steps: k >= 1.
        damping: tau in (0, 1]; 1 takes plain evaluations of F.
    """

    def __init__(self, steps: int = 1, damping: float = 1.0):
        self.steps = check_integer("steps", steps)
        self.damping = check_share("damping", damping)

    def attach(self, problem, z):
        z = z.detach()
        for _ in range(self.steps):
            z = torch.lerp(z, problem.held_image(z), self.damping)
        return z, BackwardInfo(self.steps)


class ImplicitFunction(Backward):
    """Gradient by the implicit function theorem: solves g = g0 + J^T g, with J = dF/dZ at the solution.

    Exact at an exact fixed point; the error is of the order of the forward residual and of the linear one.

    Args:
        method: "fixed_point" iterates g <- g0 + J^T g (needs a contraction), "anderson" accelerates it, "gmres"
            minimises the residual over a Krylov space, whatever the spectrum of J.
        max_steps: most products with J^T.
        tol: relative residual at which a sample is done; a `ConvergenceWarning` tells of those above it.
        depth: history of "anderson".
    """

    def __init__(self, method: str = "anderson", max_steps: int = 30, tol: float = 1e-5, depth: int = 6):
        self.method = check_choice("method", method, _METHODS)
        self.max_steps = check_integer("max_steps", max_steps)
        self.tol = check_number("tol", tol)
        self.depth = check_integer("depth", depth, low=2)

    def attach(self, problem, z):
        z = z.detach()
        tracked, info = problem.held_image(z), BackwardInfo()
        if not tracked.requires_grad:
            return tracked, info

        def solve(g0: Tensor | None) -> Tensor | None:
            if g0 is None:  # an undefined gradient, which stands for zero
                return None
            # A graph of its own, built only now: the forward pass holds one evaluation of F, not two.
            _, vjp = problem.linearise(z, reusable=True)

            def transpose(g: Tensor) -> Tensor:
                info.evaluations += 1
                return vjp(g if problem.frozen is None else g.masked_fill(problem.frozen[..., None], 0))

            with torch.no_grad():
                g, info.residual = _METHODS[self.method](transpose, g0, self)
            warn_of("backward", info.residual, info.residual <= self.tol, self.tol)
            return g

        tracked.register_hook(solve)
        return tracked, info


def _relative(residual: Tensor, g0: Tensor) -> Tensor:
    """Norm of each sample's residual over that of its right-hand side; 0 where both vanish."""
    norm, scale = (torch.linalg.vector_norm(t.flatten(1).double(), dim=1) for t in (residual, g0))
    return torch.where(norm > 0, norm / scale, 0)


def _iterate(transpose: Callable, g0: Tensor, options: ImplicitFunction, depth: int | None):
    """g <- g0 + J^T g, accelerated if depth is given; each sample keeps its best iterate."""
    g = best = g0
    best_residual = g0.new_full((len(g0),), torch.inf, dtype=torch.float64)
    history = empty_history(g0, depth) if depth else None
    for step in range(options.max_steps):
        image = g0 + transpose(g)
        residual = _relative(image - g, g0)
        # A sample that is done stays as it is, whatever others it shares the batch with.
        better = (residual < best_residual) & (best_residual > options.tol)
        best = torch.where(better[:, None, None], g, best)
        best_residual = torch.where(better, residual, best_residual)
        if bool((best_residual <= options.tol).all()):
            break
        if depth:
            g, history = mix(g, image, history, step, 1.0, 1e-12)
        else:
            g = image
    return best, best_residual


def _fixed_point(transpose, g0, options):
    return _iterate(transpose, g0, options, None)


def _anderson(transpose, g0, options):
    return _iterate(transpose, g0, options, options.depth)


def _gmres(transpose: Callable, g0: Tensor, options: ImplicitFunction):
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
        v = basis[k] - transpose(basis[k].view(shape)).flatten(1)
        for _ in range(2):  # Gram-Schmidt, twice: orthogonal to working precision
            for j, q in enumerate(basis):
                overlap = (q * v).sum(1)
                h[:, j, k] += overlap
                v = v - overlap[:, None] * q
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


_METHODS = {"fixed_point": _fixed_point, "anderson": _anderson, "gmres": _gmres}


def jacobian_norm(problem: Pushforward, z: Tensor, step: float = 0.05, direction: Tensor | None = None) -> Tensor:
    """Mean squared singular value of J = dF/dZ at the detached cloud z (B, n, d), |J|_F^2 / (n d), estimated: (B,).

    As a penalty it keeps F contractive at its fixed points, and solves short (Bai et al. 2021, Stabilizing equilibrium
    models by Jacobian regularization). Hutchinson's estimate with one normal direction for each sample, given or drawn
    from torch's global generator, by a finite difference of length `step` per coordinate: the attention kernels have no
    second derivative. Differentiable in all that F depends on, once. Padding and frozen particles are held.
    """
    check_number("step", step)
    z = z.detach()
    moving = problem.moving(z)
    direction = (torch.randn_like(z) if direction is None else direction) * moving
    change = (problem.image(z + step * direction) - problem.image(z)) / step * moving
    return change.square().sum((1, 2)) / (moving.sum((1, 2)) * z.shape[2]).clamp_min(1)
