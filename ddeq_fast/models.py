"""Models: the DDEQ layer, and a classifier on top of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddeq_fast import backwards, implicit, solvers
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import Pushforward, SolveInfo, Solver
from ddeq_fast.validation import check_cloud, check_integer


class Equilibrium(NamedTuple):
    """Where a DDEQ layer came to rest.

    particles: (B, n, d), differentiable. info: how the forward solve went. backward: how the backward one went, filled
    in when it runs; None without gradients. problem: F with its context, for evaluations at the equilibrium.
    """

    particles: Tensor
    info: SolveInfo
    backward: implicit.BackwardInfo | None
    problem: Pushforward


class DDEQ(nn.Module):
    """Distributional deep equilibrium layer: x -> Z* with F(., x)#mu = mu (Geuter et al. 2025).

    Args:
        transport: F, with `encode(x, weights) -> context` and `forward(z, context, z_weights)`, and `dim_z`.
        num_particles: particles of the latent cloud.
        solver: "auto", "anderson", "flow" or a `Solver`.
        backward: "phantom", "ift", "bilevel" or a `Backward`.
        seed: of the start cloud, drawn once from a standard normal distribution and saved with the model.

    With gradients disabled the equilibrium itself is returned; with gradients enabled, its image under the
    tracked evaluations of the backward, which is the same up to the residual.
    """

    def __init__(
        self,
        transport: TransportMap,
        num_particles: int = 10,
        *,
        solver: str | Solver = "auto",
        backward: str | implicit.Backward = "phantom",
        seed: int = 0,
    ):
        super().__init__()
        check_integer("num_particles", num_particles)
        self.transport = transport
        self.solver = solvers.make(solver)
        self.backward = backwards.make(backward)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("start", torch.randn(num_particles, transport.dim_z, generator=generator))

    def forward(
        self,
        x: Tensor,
        weights: Tensor | None = None,
        *,
        z0: Tensor | Equilibrium | None = None,
        z_weights: Tensor | None = None,
        frozen: Tensor | None = None,
    ) -> Equilibrium:
        """Solve for the equilibrium of each cloud of the batch.

        Args:
            x: input clouds (B, m, dim_x).
            weights: (B, m), nonnegative, zero for padding, one for a plain point; ones if None.
            z0: start particles (B, n, dim_z), the model's own if None; or an earlier `Equilibrium` of the same clouds,
                whose scale residuals then stay relative to.
            z_weights: (B, n), zero for padding; ones if None.
            frozen: boolean (B, n): particles that the solver must not move.

        Raises:
            TypeError, ValueError: bad shape, dtype, device, NaN, an empty or fully padded cloud.
        """
        context = self.transport.encode(x, weights)
        scale = None
        if isinstance(z0, Equilibrium):
            z0, scale = z0.particles.detach(), z0.info.scale
        if z0 is None:
            z0 = self.start.to(x.dtype).expand(x.shape[0], -1, -1)
        elif check_cloud("z0", z0).shape[::2] != (x.shape[0], self.transport.dim_z):
            expected = f"({x.shape[0]}, n, {self.transport.dim_z})"
            raise ValueError(f"z0 must have shape {expected}, got {tuple(z0.shape)}")
        if z0.dtype != x.dtype:
            raise TypeError(f"z0 has dtype {z0.dtype} but x has {x.dtype}")
        problem = Pushforward(self.transport, context, z_weights, frozen)
        with torch.no_grad():
            particles, info = solvers.solve(problem, z0.detach(), self.solver, scale=scale)
        backward = None
        if torch.is_grad_enabled():
            particles, backward = self.backward.attach(problem, particles)
        return Equilibrium(particles, info, backward, problem)


class Classification(NamedTuple):
    """logits: (B, classes); equilibrium: of the DDEQ layer."""

    logits: Tensor
    equilibrium: Equilibrium


class Classifier(nn.Module):
    """DDEQ, maximum over the particles, linear head.

    Args:
        num_classes: classes to tell apart.
        transport: the map F of the layer.
        options: of `DDEQ`.
    """

    def __init__(self, num_classes: int, transport: TransportMap, **options):
        super().__init__()
        self.ddeq = DDEQ(transport, **options)
        self.head = nn.Linear(transport.dim_z, check_integer("num_classes", num_classes))

    def forward(
        self, x: Tensor, weights: Tensor | None = None, *, z0: Tensor | Equilibrium | None = None
    ) -> Classification:
        """Class scores of clouds x (B, m, dim_x); arguments and errors as in `DDEQ.forward`."""
        equilibrium = self.ddeq(x, weights, z0=z0)
        return Classification(self.head(equilibrium.particles.amax(1)), equilibrium)
