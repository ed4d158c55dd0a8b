"""MMDFlow: the Wasserstein gradient flow of MMD^2(mu, F#mu) / 2 (Geuter et al. 2025, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.solvers.base import IterativeSolver
from ddeq_fast.solvers.optimizers import SGD, Adam
from ddeq_fast.sums.fields import check_kernel
from ddeq_fast.sums.mmd import signed_measure
from ddeq_fast.sums.operators import evaluate_plain
from ddeq_fast.sums.radial import Mixture, RadialKernel
from ddeq_fast.utils.validation import check_choice, check_flag, check_integer, check_number, check_pair


class _State(NamedTuple):
    optimizer: object
    kernel: RadialKernel


class MMDFlow(IterativeSolver):
    """Explicit Euler steps Z <- Z - lr * g along the Wasserstein gradient g of MMD^2(mu, F#mu) / 2.

    With nu = mu - F#mu and its field f, g(z_i) = f(z_i) - J^T f(F(z))_i (weights aside): one pass over the
    pairs of the concatenated clouds and one vector-Jacobian product through F.

    Args:
        kernel: one kernel, or several of different bandwidths whose objectives are averaged.
        lr: step size.
        max_steps, tol, relative, stop_on, stop_together, check_every, backend, cuda_graph: see `IterativeSolver`.
        gradient: "autodiff" differentiates through F; "witness" holds F(Z) fixed, and needs no vector-Jacobian
            product.
        optimizer: `SGD(momentum, nesterov)` or `Adam(...)`.
        lr_decay: (factor, steps): lr is multiplied by `factor` every `steps` steps.
        anneal: (factor, minimum): bandwidths are multiplied by `factor` every step, down to `minimum`.
        noise: (beta, factor): the field is taken at particles displaced by beta times a standard normal vector,
            beta being multiplied by `factor` every step (Arbel et al. 2019, section 4).
        rescale: with several kernels, divide each objective by its initial value (batch mean), relative to the
            first's.
        first_kernel_only: of several kernels follow the gradient of the first alone, its share of the average.
            Compatibility with the original code, which does so.
        regulariser: (strength, p): adds strength * mean_i |z_i|_p to the objective.

    No step is like the one before, as `cuda_graph` needs it, with Adam, lr_decay, anneal or noise.
    """

    def __init__(
        self,
        kernel: RadialKernel | Sequence[RadialKernel] | None = None,
        *,
        lr: float = 1.0,
        max_steps: int = 200,
        tol: float = 1e-3,
        relative: bool = True,
        stop_on: str = "mmd",
        stop_together: bool = False,
        check_every: int = 10,
        backend: str = "auto",
        gradient: str = "autodiff",
        optimizer: SGD | Adam | None = None,
        lr_decay: tuple[float, int] = (1.0, 1),
        anneal: tuple[float, float] | None = None,
        noise: tuple[float, float] = (0.0, 1.0),
        rescale: bool = False,
        first_kernel_only: bool = False,
        regulariser: tuple[float, float] | None = None,
        cuda_graph: bool = False,
    ):
        kernels = kernel if isinstance(kernel, Sequence) and not isinstance(kernel, str) else (kernel,)
        if not kernels:
            raise ValueError("kernel must name at least one kernel, got an empty sequence")
        self.kernels = tuple(check_kernel(k) for k in kernels)
        self.lr = check_number("lr", lr)
        self.needs_vjp = check_choice("gradient", gradient, ("autodiff", "witness")) == "autodiff"
        self.optimizer = SGD() if optimizer is None else optimizer
        if isinstance(self.optimizer, type) or not all(hasattr(self.optimizer, part) for part in ("init", "direction")):
            got = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
            raise TypeError(f"optimizer must be a descent rule such as SGD(0.9), got {got}")
        self.lr_decay = check_pair("lr_decay", lr_decay, "(factor, steps)")
        check_number("lr_decay factor", lr_decay[0])
        check_integer("lr_decay steps", lr_decay[1])
        self.noise = check_pair("noise", noise, "(beta, factor)")
        check_number("noise beta", noise[0], closed=True)
        check_number("noise factor", noise[1], closed=True)
        self.rescale = check_flag("rescale", rescale)
        self.first_kernel_only = check_flag("first_kernel_only", first_kernel_only)
        self.anneal, self.regulariser = anneal, regulariser
        if anneal is not None:
            self.anneal = check_pair("anneal", anneal, "(factor, minimum)")
            check_number("anneal factor", anneal[0])
            check_number("anneal minimum", anneal[1])
            if all(k.bandwidth is None for k in self.kernels):
                raise ValueError(f"anneal needs a kernel with a bandwidth, got {kernel!r}")
        if regulariser is not None:
            self.regulariser = check_pair("regulariser", regulariser, "(strength, p)")
            check_number("regulariser strength", regulariser[0], closed=True)
            check_number("regulariser p", regulariser[1])
        super().__init__(
            kernel=self._average([1.0] * len(self.kernels)),
            max_steps=max_steps,
            tol=tol,
            relative=relative,
            stop_on=stop_on,
            stop_together=stop_together,
            check_every=check_every,
            backend=backend,
            cuda_graph=cuda_graph,
        )

    @property
    def rounding_kernel(self):
        return super().rounding_kernel if self.anneal is None and not self.rescale else None

    @property
    def alike_from(self):
        constant = self.lr_decay[0] == 1 and self.anneal is None and self.noise[0] == 0
        return 0 if constant and isinstance(self.optimizer, SGD) else None

    def _average(self, factors) -> RadialKernel:
        """The mean of the kernels, each with a factor: the mean of MMDs is the MMD of the mean."""
        if len(self.kernels) == 1:
            return self.kernels[0]
        return Mixture(tuple((c / len(factors), k) for c, k in zip(factors, self.kernels, strict=True)))

    def init(self, problem, z, y):
        kernel = self.kernel
        if self.rescale and len(self.kernels) > 1:
            losses = [float(problem.squared_mmd(z, y, k, self.backend).mean()) for k in self.kernels]
            kernel = self._average([losses[0] / loss if loss > 0 else 1.0 for loss in losses])
        return _State(self.optimizer.init(z), kernel)

    def kernel_at(self, state, step):
        if self.anneal is None:
            return state.kernel
        factor, minimum = self.anneal
        return state.kernel.rescaled(factor**step, minimum)

    def step(self, problem, z, y, vjp, state, step):
        kernel = self.kernel_at(state, step)
        if self.first_kernel_only and len(self.kernels) > 1:
            kernel = Mixture(kernel.terms()[: len(self.kernels[0].terms())])
        g = self.wasserstein_gradient(problem, z, y, vjp, kernel, step)
        direction, optimizer = self.optimizer.direction(g, state.optimizer, step)
        factor, every = self.lr_decay
        lr = self.lr * factor ** (step // every)
        return z - lr * direction, state._replace(optimizer=optimizer), g

    def wasserstein_gradient(self, problem, z: Tensor, y: Tensor, vjp, kernel: RadialKernel, step: int = 0) -> Tensor:
        """Gradient of the objective at each particle, (B, n, d): that with respect to z_i over its weight a_i.

        Zero for padding and for frozen particles.
        """
        a, b = problem.measures(z, y)
        z, y = problem.present(z), problem.present_image(y)
        sources, charges = signed_measure(z, y, a, b)
        beta = self.noise[0] * self.noise[1] ** step
        targets = sources
        if beta > 0:
            targets = torch.cat((z + beta * torch.randn_like(z), y), 1)
        n = z.shape[1]
        targets = targets if vjp is not None else targets[:, :n].contiguous()
        f = evaluate_plain(targets, sources, charges, kernel, self.backend, False, True)[1]
        g = f[:, :n]
        present = (a > 0)[..., None]
        if vjp is not None:
            g = g - vjp(b[..., None] * f[:, n:]) / torch.where(present, a[..., None], 1)
        if self.regulariser is not None:
            g = g + _norm_gradient(z, *self.regulariser)
        g = torch.where(present, g, 0)
        return g if problem.frozen is None else g.masked_fill(problem.frozen[..., None], 0)


def _norm_gradient(z: Tensor, strength: float, p: float) -> Tensor:
    """Gradient of strength * |z_i|_p at each particle."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(torch.linalg.vector_norm(z, p, dim=-1).sum(), z)
    return strength * g
