"""Backward passes: gradients at a fixed point Z* = F(Z*, context), at a cost independent of the forward steps.

A backward takes the detached solution and returns the same particles (or a damped image of them) with an
autograd graph through a few evaluations of F:

* `Phantom`: unrolls k damped steps from Z* (Geng et al. 2021).
* `ImplicitFunction`: the implicit function theorem, dZ* = (I - J)^-1 dF, with the transposed system solved
  iteratively when the gradient arrives (Bai et al. 2019).

A linear system is solved in the precision of the particles, in float32 at least; the F in it is evaluated under the
autocast of the forward pass, wherever the backward pass runs.

`jacobian_norm` measures how contractive F is there, to be penalised in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ddeq_fast.solvers.anderson import empty_history, mix
from ddeq_fast.solvers.iterate import warn_of
from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.utils import precision, transforms
from ddeq_fast.utils.validation import check_choice, check_cloud, check_integer, check_number, check_share


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


def implicit(image: Tensor, value: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """`value` (B, n, d), with the graph of F's `image`, which a gradient g of `value` reaches as solve(g).

    `solve` gets finite numbers, those of samples with others being zero, and its result is without a graph.

    Raises:
        RuntimeError: in forward mode. Later, of gradients of gradients and under `torch.vmap`.
    """
    if unpack_dual(image).tangent is not None:
        raise RuntimeError('backward "ift" or "bilevel" has no forward-mode derivatives: take those of reverse mode')
    return _Implicit.apply(image, value, solve) if image.requires_grad else value


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(image, value, solve):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        image, _, ctx.solve = inputs
        ctx.save_for_backward(image)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, gradient):
        if gradient is None:  # an undefined one, which stands for zero
            return None, None, None
        if transforms.mapped(gradient) or torch._C._functorch.is_legacy_batchedtensor(gradient):
            raise RuntimeError(
                'backward "ift" or "bilevel" solves for one gradient at a time: no torch.vmap, jacrev or '
                "is_grads_batched=True over it, but torch.autograd.grad for each"
            )
        (image,) = ctx.saved_tensors
        with torch.no_grad(), precision.disabled(gradient.device.type):
            # What overflows, as under a scaled loss, stays what it is: a scaler looks for it.
            finite = gradient.isfinite().all(-1).all(-1)[:, None, None]
            wide = torch.where(finite, gradient, 0).to(torch.promote_types(gradient.dtype, torch.float32))
            solved = torch.where(finite, ctx.solve(wide).to(gradient.dtype), gradient)
        if torch.is_grad_enabled():
            solved = _Once.apply(solved, gradient, image)
        return solved, None, None


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated once more: those of F at the solution take it for fixed."""

    @staticmethod
    def forward(solved, *_):
        return solved.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            'backward "ift" or "bilevel" has no second derivatives: the solution is held in its gradient. Take '
            "Phantom(k), with as many steps k as a solve takes"
        )


class Phantom(Backward):
    """Phantom gradient: `steps` tracked steps Z <- (1 - damping) Z + damping F(Z) from the solution, which is held.

    Its derivatives, of any order, are those of the cloud after these steps with the solution held: they tend to the
    equilibrium's as steps are added, as fast as F contracts, and those of higher order later. The fused kernels of
    attention, taken for large clouds, have no second ones: evaluate the layer inside `twice_differentiable()` for them.

    Args:
        steps: k >= 1.
        damping: tau in (0, 1]; 1 takes plain evaluations of F.
    """

    def __init__(self, steps: int = 1, damping: float = 1.0):
        self.steps = check_integer("steps", steps)
        self.damping = check_share("damping", damping)

    def attach(self, problem, z):
        z, problem = z.detach(), problem.recorded(z)
        for _ in range(self.steps):
            z = torch.lerp(z, problem.constrained_image(z), self.damping)
        return z, BackwardInfo(self.steps)


class ImplicitFunction(Backward):
    """Gradient by the implicit function theorem: solves g = g0 + J^T g, with J = dF/dZ at the solution.

    Exact at an exact fixed point; the error is of the order of the forward residual and of the linear one. A derivative
    of it raises RuntimeError, as does forward mode.

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
        z, problem = z.detach(), problem.recorded(z)
        image, info = problem.constrained_image(z), BackwardInfo()

        def solve(g0: Tensor) -> Tensor:
            # A graph of its own, built only now: the forward pass holds one evaluation of F, not two.
            _, vjp = problem.linearise(z, reusable=True)
            vjp = problem.product(torch.zeros_like if vjp is None else vjp, z)

            def transpose(g: Tensor) -> Tensor:
                info.evaluations += 1
                return vjp(g if problem.frozen is None else g.masked_fill(problem.frozen[..., None], 0))

            g, info.residual = _METHODS[self.method](transpose, g0, self)
            warn_of("backward", info.residual, info.residual <= self.tol, self.tol)
            return g

        return implicit(image, image.detach(), solve), info


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

    Raises:
        TypeError, ValueError: a bad step, or z or direction that is no cloud of the problem's.
    """
    check_number("step", step)
    if not isinstance(problem, Pushforward):
        raise TypeError(f"problem must be a Pushforward, got {type(problem).__name__}")
    problem = problem.checked(z, "z")
    if direction is not None:
        check_cloud("direction", direction, like=("z", z))
        if direction.shape != z.shape:
            raise ValueError(f"direction must have shape {tuple(z.shape)}, got {tuple(direction.shape)}")
    z = z.detach()
    moving = problem.moving(z)
    direction = (torch.randn_like(z) if direction is None else direction) * moving
    change = (problem.image(z + step * direction) - problem.image(z)) / step * moving
    return change.square().sum((1, 2)) / (moving.sum((1, 2)) * z.shape[2]).clamp_min(1)
