"""Gradient by the implicit function theorem: dZ* = (I - J)^-1 dF, with the transposed system solved iteratively when
the gradient arrives (Bai et al. 2019).

The system is solved in the precision of the particles, in float32 at least; the F in it is evaluated under the autocast
of the forward pass, wherever the backward pass runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ddeq_fast.gradients import linear
from ddeq_fast.gradients.base import Backward, BackwardInfo
from ddeq_fast.solvers.anderson import LARGEST_DEPTH
from ddeq_fast.solvers.iterate import warn_of
from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.utils import precision, transforms
from ddeq_fast.utils.validation import check_choice, check_integer, check_number


@dataclass(kw_only=True, repr=False, eq=False)
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

    Raises:
        TypeError, ValueError: naming an option out of range.
    """

    method: str = "anderson"
    max_steps: int = 30
    tol: float = 1e-5
    depth: int = 6

    def __post_init__(self) -> None:
        check_choice("method", self.method, linear.METHODS)
        check_integer("max_steps", self.max_steps)
        self.tol = check_number("tol", self.tol)
        check_integer("depth", self.depth, low=2, high=LARGEST_DEPTH)

    def attach(self, problem: Pushforward, z: Tensor) -> tuple[Tensor, BackwardInfo]:
        z, problem = z.detach(), problem.recorded(z)
        image = problem.constrained_image(z)
        info = BackwardInfo(evaluated=(z, image))

        def solve(g0: Tensor) -> Tensor:
            # A graph of its own, built only now: the forward pass holds one evaluation of F, not two.
            _, vjp = problem.linearise(z, reusable=True)
            vjp = problem.product(torch.zeros_like if vjp is None else vjp, z)

            def transpose(g: Tensor) -> Tensor:
                info.evaluations += 1
                return vjp(g if problem.frozen is None else g.masked_fill(problem.frozen[..., None], 0))

            options = linear.Options(self.max_steps, self.tol, self.depth)
            g, info.residual = linear.METHODS[self.method](transpose, g0, options)
            warn_of("backward", info.residual, info.residual <= self.tol, self.tol)
            return g

        return implicit(image, image.detach(), solve), info


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
            # Derivatives of F at the solution take it for fixed.
            error = RuntimeError(
                'backward "ift" or "bilevel" has no second derivatives: its gradient takes the solution for fixed. '
                "Take Phantom(steps=k), with as many steps k as a solve takes"
            )
            solved = transforms.once(solved, error, gradient, image)
        return solved, None, None
