"""Models: the DDEQ layer, a classifier and a completer of clouds on top of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddeq_fast import gradients as backwards
from ddeq_fast import solvers
from ddeq_fast.clouds import PointClouds, packed
from ddeq_fast.gradients import implicit
from ddeq_fast.networks import Lift, TransportMap
from ddeq_fast.solvers import Pushforward, SolveInfo, Solver, check_scale, refuse_transforms
from ddeq_fast.utils.validation import check_cloud, check_flag, check_integer, check_number, check_weights


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
        num_particles: particles of the latent cloud; None for a layer that has no start of its own.
        solver: "auto", "anderson", "flow" or a `Solver`.
        backward: "phantom", "ift", "bilevel" or a `Backward`.
        seed: of the start cloud, drawn once from a standard normal distribution and saved with the model.
        image: what is returned with gradients disabled. False: the solution itself; with gradients enabled it is its
            image under the tracked evaluations of the backward, the same up to the residual. True: that image always,
            which a model trained with few steps, far from equilibrium, needs to do what it was trained for.

    Raises:
        TypeError, ValueError: an option out of range, or a transport that is none.
    """

    def __init__(
        self,
        transport: TransportMap,
        num_particles: int | None = 10,
        *,
        solver: str | Solver = "auto",
        backward: str | implicit.Backward = "phantom",
        seed: int = 0,
        image: bool = False,
    ):
        super().__init__()
        _check_transport(transport)
        self.transport, self.image = transport, check_flag("image", image)
        self.solver = solvers.make(solver)
        self.backward = backwards.make(backward)
        start = None
        check_integer("seed", seed, low=0, high=2**63 - 1)
        if num_particles is not None:
            generator = torch.Generator().manual_seed(seed)
            shape = check_integer("num_particles", num_particles), transport.dim_z
            start = torch.randn(shape, generator=generator)
        self.register_buffer("start", start)

    def forward(
        self,
        x: Tensor,
        weights: Tensor | None = None,
        *,
        z0: Tensor | Equilibrium | None = None,
        z_weights: Tensor | None = None,
        frozen: Tensor | None = None,
        held: PointClouds | None = None,
    ) -> Equilibrium:
        """Solve for the equilibrium of each cloud of the batch.

        Args:
            x: input clouds (B, m, dim_x).
            weights: (B, m), nonnegative, zero for padding, one for a plain point; ones if None.
            z0: start particles (B, n, dim_z), the model's own if None; or an earlier `Equilibrium` of the same clouds,
                whose scale residuals then stay relative to.
            z_weights: (B, n), zero for padding; ones if None.
            frozen: boolean (B, n): particles that the solver must not move.
            held: further particles (B, m, dim_z), with weights, that neither the solver nor F moves: they are part of
                the measure and condition F, and gradients reach them. What is returned are the others.

        Raises:
            TypeError, ValueError: bad shape, dtype, device, NaN, an empty or fully padded cloud.
            RuntimeError: in forward mode or under `torch.vmap`; later, of derivatives that the backward has not.
        """
        if isinstance(x, Tensor):
            refuse_transforms(x)
        context = self.transport.encode(x, weights)
        scale = None
        if isinstance(z0, Equilibrium):
            scale = check_scale(z0.info.scale, x, "z0.info.scale")
            z0 = z0.particles.detach()
        if z0 is None and self.start is None:
            raise ValueError("z0 must be given: this layer has no start of its own")
        if z0 is None:
            z0 = self.start.to(x.dtype).expand(x.shape[0], -1, -1)
        elif check_cloud("z0", z0).shape[::2] != (x.shape[0], self.transport.dim_z):
            expected = f"({x.shape[0]}, n, {self.transport.dim_z})"
            raise ValueError(f"z0 must have shape {expected}, got {tuple(z0.shape)}")
        if z0.dtype != x.dtype:
            raise TypeError(f"z0 has dtype {z0.dtype} but x has {x.dtype}")
        if z0.device != x.device:
            raise ValueError(f"z0 is on {z0.device} but x is on {x.device}")
        if held is None:
            problem = Pushforward(self.transport, context, z_weights, frozen)
        else:
            context = self.transport.anchored(context, *_check_clouds("held", held))
            mass = context.anchors.weights
            mass = mass.sum(1, dtype=torch.promote_types(mass.dtype, torch.float32))
            problem = _Beside(mass, self.transport, context, z_weights, frozen)
        problem = problem.recorded(x)  # the context was made under this autocast
        with torch.no_grad():
            particles, info = solvers.solve(problem, z0.detach(), self.solver, scale=scale)
        tracked, backward = torch.is_grad_enabled(), None
        if tracked or self.image:
            particles, backward = self.backward.attach(problem, particles)
        return Equilibrium(particles, info, backward if tracked else None, problem)


def _check_transport(transport) -> None:
    if not all(hasattr(transport, part) for part in ("encode", "forward", "dim_z")) or isinstance(transport, type):
        raise TypeError(f"transport must be a TransportMap, or have what one has, got {type(transport).__name__}")


def _check_clouds(name: str, clouds) -> PointClouds:
    if not isinstance(clouds, (tuple, list)) or len(clouds) != 2:
        raise TypeError(f"{name} must be PointClouds, points and weights, got {type(clouds).__name__}")
    return PointClouds(*clouds)


class _Beside(Pushforward):
    """A problem of particles beside others that do not move, of mass `mass` (B,): of the difference between the whole
    cloud and its image these cancel, and what is left has the charges that it has in the whole."""

    def __init__(self, mass: Tensor, *problem):
        super().__init__(*problem)
        self.mass = mass

    def select(self, index):
        part = super().select(index)
        part.mass = self.mass[index]
        return part

    def measures(self, z, y):
        wide = torch.promote_types(z.dtype, torch.float32)  # half precision counts no further than 2,048
        weights = z.new_ones(z.shape[:2], dtype=wide) if self.weights is None else self.weights.to(wide)
        total = weights.sum(1, keepdim=True) + self.mass[:, None].to(wide)
        return ((weights / total).to(z.dtype),) * 2


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
        _check_transport(transport)
        self.ddeq = DDEQ(transport, **options)
        self.head = nn.Linear(transport.dim_z, check_integer("num_classes", num_classes))

    def forward(
        self, x: Tensor, weights: Tensor | None = None, *, z0: Tensor | Equilibrium | None = None
    ) -> Classification:
        """Class scores of clouds x (B, m, dim_x); arguments and errors as in `DDEQ.forward`."""
        equilibrium = self.ddeq(x, weights, z0=z0)
        return Classification(self.head(equilibrium.particles.amax(1)), equilibrium)


class Completion(NamedTuple):
    """points: completed clouds (B, n, d), the points of the partial cloud, then the new ones, zero at padding;
    weights: (B, n), zero for padding; observed: (B, n), True for points of the partial cloud;
    equilibrium: of the DDEQ layer, the new points before they are lowered.
    """

    points: Tensor
    weights: Tensor
    observed: Tensor
    equilibrium: Equilibrium


class Completer(nn.Module):
    """Completion of partial clouds (Geuter et al. 2025, section 5): lift, DDEQ, lower.

    Observed points and random ones are lifted to the latent space by an injective map q; the random ones move to
    equilibrium under F, conditioned on the partial cloud and beside its points, which stay; q^-1 takes them back.

    Args:
        transport: the map F of the layer.
        growth: points of a completed cloud for each point of the partial one, rounded down; greater than one.
        widths: of the latent space on the way from dim_x to dim_z, see `Lift`.
        options: of `DDEQ`.
    """

    def __init__(self, transport: TransportMap, growth: float = 1.275, widths: tuple[int, ...] = (), **options):
        super().__init__()
        _check_transport(transport)
        self.growth = check_number("growth", growth, low=1.0)
        if not isinstance(widths, (tuple, list)):
            raise TypeError(f"widths must be a tuple of widths, got {widths!r}")
        self.lift = Lift((transport.dim_x, *widths, transport.dim_z))
        self.ddeq = DDEQ(transport, None, **options)

    def sow(self, x: Tensor, weights: Tensor | None = None, noise: Tensor | None = None) -> PointClouds:
        """Random points for the completion to start from, `missing_points` a cloud, of weight one.

        They are normal, with the mean and the deviation that each coordinate has over the points of the cloud.

        Args:
            x, weights: partial clouds, as in `forward`.
            noise: (B, n, dim_x), standard normal, n at least what the cloud that misses most needs; drawn if None.

        Raises:
            TypeError, ValueError: bad shape, dtype, device, NaN, an empty or fully padded cloud.
        """
        self._check(x)
        present = check_weights("weights", weights, None, x) > 0
        missing, count = missing_points(present, self.growth), present.sum(1)[:, None, None]
        n = int(missing.max())
        if noise is None:
            noise = torch.randn(len(x), n, x.shape[2], dtype=x.dtype, device=x.device)
        elif not isinstance(noise, Tensor):
            raise TypeError(f"noise must be a torch.Tensor, got {type(noise).__name__}")
        elif noise.dim() != 3 or noise.shape[::2] != x.shape[::2] or noise.shape[1] < n:
            raise ValueError(f"noise must have shape ({len(x)}, >= {n}, {x.shape[2]}), got {tuple(noise.shape)}")
        else:
            check_cloud("noise", noise, like=("x", x))
        x = torch.where(present[..., None], x, 0)
        mean = x.sum(1, keepdim=True) / count
        variance = (torch.where(present[..., None], x - mean, 0)).square().sum(1, keepdim=True) / count
        new = torch.arange(noise.shape[1], device=x.device) < missing[:, None]
        return PointClouds((mean + variance.sqrt() * noise) * new[..., None], new.to(x.dtype))

    def forward(
        self,
        x: Tensor,
        weights: Tensor | None = None,
        *,
        seeds: PointClouds | None = None,
        noise: Tensor | None = None,
    ) -> Completion:
        """Complete clouds.

        Args:
            x: partial clouds (B, m, dim_x).
            weights: (B, m), nonnegative, zero for padding; ones if None.
            seeds: start points (B, n, dim_x) and weights, `sow(x, weights, noise)` if None.
            noise: see `sow`; not beside seeds, which need none.

        Raises:
            TypeError, ValueError: bad shape, dtype, device, NaN, an empty or fully padded cloud.
        """
        if seeds is not None and noise is not None:
            raise ValueError("noise must be None where seeds are given, which it is for")
        self._check(x)
        seeds = self.sow(x, weights, noise) if seeds is None else _check_clouds("seeds", seeds)
        check_cloud("seeds", seeds.points, like=("x", x))
        new = check_weights("seeds.weights", seeds.weights, None, seeds.points)
        dtype = next(self.lift.parameters()).dtype
        if x.dtype != dtype:
            raise TypeError(f"x has dtype {x.dtype} but the network has {dtype}")
        seeds = PointClouds(torch.where(new[..., None] > 0, seeds.points, 0), new)
        kept = packed(x, check_weights("weights", weights, None, x))
        held, z0 = (self._lifted(*cloud) for cloud in (kept, seeds))
        equilibrium = self.ddeq(x, weights, z0=z0.points, z_weights=new, held=held)
        lowered = torch.where(seeds.mask[..., None], self.lift.inverse(equilibrium.particles), 0)
        charges = torch.cat((kept.weights, new), 1)
        observed = torch.cat((kept.mask, torch.zeros_like(seeds.mask)), 1)
        return Completion(torch.cat((kept.points, lowered), 1), charges, observed, equilibrium)

    def _check(self, x):
        dim = self.lift.dims[0]
        if isinstance(x, Tensor) and (x.dim() != 3 or x.shape[-1] != dim):
            raise ValueError(f"x must have shape (B, m, {dim}), got {tuple(x.shape)}")
        check_cloud("x", x)

    def _lifted(self, points, weights):
        return PointClouds(torch.where((weights > 0)[..., None], self.lift(points), 0), weights)


def missing_points(weights: Tensor, growth: float) -> Tensor:
    """How many points completion adds to clouds with weights (B, m): growth n - n, rounded down, one at least; (B,)."""
    count = (weights > 0).sum(1)
    return ((growth * count.double() + 1e-9).long() - count).clamp_min(1)
