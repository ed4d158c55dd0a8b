"""MMDFlow: the Wasserstein gradient flow of MMD^2(mu, F#mu) / 2 (Geuter et al. 2025, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddeq_fast.solvers.base import RIESZ, IterativeSolver
from ddeq_fast.solvers.optimizers import SGD, Adam
from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.sums.mmd import signed_measure
from ddeq_fast.sums.operators import evaluate_plain
from ddeq_fast.sums.radial import Mixture, RadialKernel, check_kernel
from ddeq_fast.utils.validation import check_choice, check_flag, check_integer, check_number, check_pair, check_share


class _State(NamedTuple):
    optimizer: Any
    kernel: RadialKernel


@dataclass(kw_only=True, repr=False, eq=False)
class MMDFlow(IterativeSolver):
    """Explicit Euler steps Z <- Z - lr * g along the Wasserstein gradient g of MMD^2(mu, F#mu) / 2.

    With nu = mu - F#mu and its field f, g(z_i) = f(z_i) - J^T f(F(z))_i (weights aside): one pass over the
    pairs of the concatenated clouds and one vector-Jacobian product through F. Of particles with labels it is the
    field of the measure on the product space that is taken, and the part of it along z.

    Args:
        kernel: one kernel, or several of different bandwidths whose objectives are averaged.
        lr: step size.
        gradient: "autodiff" differentiates through F; "witness" takes F(Z) for fixed, and needs no vector-Jacobian
            product.
        optimizer: `SGD(momentum, nesterov)` or `Adam(...)`.
        lr_decay: (factor, steps): lr is multiplied by `factor` every `steps` steps.
        anneal: (factor, minimum): bandwidths are multiplied by `factor`, at most 1, every step, down to `minimum`.
        noise: (beta, factor): the field is taken at particles displaced by beta times a standard normal vector,
            beta being multiplied by `factor` every step (Arbel et al. 2019, section 4).
        rescale: with several kernels, divide each objective by its initial value (batch mean), relative to the
            first's.
        regulariser: (strength, p): adds strength * mean_i |z_i|_p to the objective.
        max_steps, tol, relative, stop_on, stop_together, check_every, patience, backend, cuda_graph: see
            `IterativeSolver`.

    No step is like the one before, as `cuda_graph` needs it, with Adam, lr_decay, anneal or noise.

    Raises:
        TypeError, ValueError: naming an option out of range.
    """

    kernel: RadialKernel | Sequence[RadialKernel] = RIESZ  # type: ignore[assignment]
    lr: float = 1.0
    max_steps: int = 200
    check_every: int = 10
    gradient: str = "autodiff"
    optimizer: SGD | Adam = SGD()  # noqa: RUF009
    lr_decay: tuple[float, int] = (1.0, 1)
    anneal: tuple[float, float] | None = None
    noise: tuple[float, float] = (0.0, 1.0)
    rescale: bool = False
    regulariser: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self.lr = check_number("lr", self.lr)
        self.needs_vjp = check_choice("gradient", self.gradient, ("autodiff", "witness")) == "autodiff"
        optimizer = self.optimizer
        if isinstance(optimizer, type) or not all(hasattr(optimizer, part) for part in ("init", "direction")):
            got = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
            raise TypeError(f"optimizer must be a descent rule such as SGD(0.9), got {got}")
        self.lr_decay = check_pair("lr_decay", self.lr_decay, "(factor, steps)")
        check_number("lr_decay factor", self.lr_decay[0])
        check_integer("lr_decay steps", self.lr_decay[1])
        self.noise = check_pair("noise", self.noise, "(beta, factor)")
        check_number("noise beta", self.noise[0], closed=True)
        check_number("noise factor", self.noise[1], closed=True)
        check_flag("rescale", self.rescale)
        if self.anneal is not None:
            self.anneal = check_pair("anneal", self.anneal, "(factor, minimum)")
            check_share("anneal factor", self.anneal[0])
            check_number("anneal minimum", self.anneal[1])
        if self.regulariser is not None:
            self.regulariser = check_pair("regulariser", self.regulariser, "(strength, p)")
            check_number("regulariser strength", self.regulariser[0], closed=True)
            check_number("regulariser p", self.regulariser[1])
        super().__post_init__()
        if self.anneal is not None and all(kernel.bandwidth is None for kernel in self.kernels):
            raise ValueError(f"anneal needs a kernel with a bandwidth, got {self.kernel!r}")

    def _check_kernel(self) -> None:
        given = self.kernel
        if not isinstance(given, Sequence) or isinstance(given, str):
            self.kernel = check_kernel(given)
            self.kernels: tuple[RadialKernel, ...] = (self.kernel,)
            return
        if not given:
            raise ValueError("kernel must name at least one kernel, got an empty sequence")
        self.kernel = self.kernels = tuple(map(check_kernel, given))

    @property
    def rounding_kernel(self) -> RadialKernel | None:
        changing = self.anneal is not None or self.rescale
        return None if changing or super().rounding_kernel is None else self._average([1.0] * len(self.kernels))

    @property
    def alike_from(self) -> int | None:
        constant = self.lr_decay[0] == 1 and self.anneal is None and self.noise[0] == 0
        return 0 if constant and isinstance(self.optimizer, SGD) else None

    def _average(self, factors: Sequence[float]) -> RadialKernel:
        """The mean of the kernels, each with a factor: the mean of MMDs is the MMD of the mean."""
        if len(self.kernels) == 1:
            return self.kernels[0]
        return Mixture(tuple((c / len(factors), k) for c, k in zip(factors, self.kernels, strict=True)))

    def init(self, problem: Pushforward, z: Tensor, y: Tensor) -> _State:
        kernel = self._average([1.0] * len(self.kernels))
        if self.rescale and len(self.kernels) > 1:
            losses = [float(problem.squared_mmd(z, y, k, self.backend).mean()) for k in self.kernels]
            kernel = self._average([losses[0] / loss if loss > 0 else 1.0 for loss in losses])
        return _State(self.optimizer.init(z), kernel)

    def kernel_at(self, state: _State, step: int) -> RadialKernel:
        if self.anneal is None:
            return state.kernel
        factor, minimum = self.anneal
        return state.kernel.rescaled(factor**step, minimum)

    def followed_kernel(self, state: _State, step: int) -> RadialKernel:
        """Kernel of the objective whose gradient is followed."""
        return self.kernel_at(state, step)

    def step(
        self,
        problem: Pushforward,
        z: Tensor,
        y: Tensor,
        vjp: Callable[[Tensor], Tensor] | None,
        state: _State,
        step: int,
    ) -> tuple[Tensor, _State, Tensor]:
        g = self.wasserstein_gradient(problem, z, y, vjp, self.followed_kernel(state, step), step)
        direction, optimizer = self.optimizer.direction(g, state.optimizer, step)
        factor, every = self.lr_decay
        lr = _decayed(self.lr, factor, step // every)
        return z - lr * direction, state._replace(optimizer=optimizer), g

    def wasserstein_gradient(
        self,
        problem: Pushforward,
        z: Tensor,
        y: Tensor,
        vjp: Callable[[Tensor], Tensor] | None,
        kernel: RadialKernel,
        step: int = 0,
    ) -> Tensor:
        """Gradient of the objective at each particle, (B, n, d): that with respect to z_i over its weight a_i.

        Zero for padding and for frozen particles.
        """
        a, b = problem.measures(z, y)
        z, y = problem.present(z), problem.present_image(y)
        image = problem.on_product(y)
        sources, charges = signed_measure(problem.on_product(z), image, a, b)
        beta = _decayed(*self.noise, step)
        targets = sources
        if beta > 0:
            targets = torch.cat((problem.on_product(z + beta * torch.randn_like(z)), image), 1)
        n, d = z.shape[1:]
        targets = targets if vjp is not None else targets[:, :n].contiguous()
        f = evaluate_plain(targets, sources, charges, kernel, self.backend, False, True)[1][..., :d]
        g = f[:, :n]
        present = (a > 0)[..., None]
        if vjp is not None:
            g = g - vjp(b[..., None] * f[:, n:]) / torch.where(present, a[..., None], 1)
        if self.regulariser is not None:
            g = g + _norm_gradient(z, *self.regulariser)
        g = torch.where(present, g, 0)
        return g if problem.frozen is None else g.masked_fill(problem.frozen[..., None], 0)


def _decayed(value: float, factor: float, times: int) -> float:
    """value * factor^times; infinity where that is beyond all floats."""
    try:
        return value * factor**times
    except OverflowError:
        return math.inf if value else 0.0


def _norm_gradient(z: Tensor, strength: float, p: float) -> Tensor:
    """Gradient of strength * |z_i|_p at each particle."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(torch.linalg.vector_norm(z, p, dim=-1).sum(), z)
    return strength * g
