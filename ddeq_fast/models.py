"""Models: the DDEQ layer, a classifier and a completer of clouds on top of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddeq_fast import gradients, solvers
from ddeq_fast.clouds import PointClouds, compact
from ddeq_fast.gradients import Backward, BackwardInfo
from ddeq_fast.networks import Lift, TransportMap
from ddeq_fast.solvers import Pushforward, SolveInfo, Solver, check_scale, refuse_transforms
from ddeq_fast.utils.validation import check_cloud, check_flag, check_integer, check_number, check_weights


class Equilibrium(NamedTuple):
    """Where a DDEQ layer came to rest.

    particles: (B, n, d), differentiable. info: how the forward solve went. backward_info: how the backward one went,
    filled in when it runs; None without gradients. problem: F with its context, for evaluations at the equilibrium.
    """

    particles: Tensor
    info: SolveInfo
    backward_info: BackwardInfo | None
    problem: Pushforward


class DDEQ(nn.Module):
    """Distributional deep equilibrium layer: x -> Z* with F(., x)#mu = mu (Geuter et al. 2025).

    Args:
        transport: F, with `encode(x, weights) -> context` and `forward(z, context, z_weights)`, and `dim_z`; also
            `anchored(context, points, weights) -> context` where there are particles beside.
        num_particles: particles of the latent cloud; None for a layer that has no start of its own.
        solver: "auto", "anderson", "flow", another registered name, or a `Solver`.
        backward: "phantom", "ift", "bilevel", another registered name, or a `Backward`, such as `Phantom(steps=3)`.
        seed: of the start cloud, drawn once from a standard normal distribution and saved with the model.
        return_image: what is returned with gradients disabled. False: the solution itself; with gradients enabled it is
            its image under the tracked evaluations of the backward, the same up to the residual. True: that image
            always, which a model trained with few steps, far from equilibrium, needs to do what it was trained for.
        solver_options: options of a solver given by name: `DDEQ(transport, solver="auto", tol=1e-4)`. A backward with
            options is given as an object.

    Raises:
        TypeError, ValueError: an option out of range, one that the solver has not, or a transport that is none.
    """

    start: Tensor | None

    def __init__(
        self,
        transport: TransportMap,
        num_particles: int | None = 10,
        *,
        solver: str | Solver = "auto",
        backward: str | Backward = "phantom",
        seed: int = 0,
        return_image: bool = False,
        **solver_options: Any,
    ):
        super().__init__()
        dim_z = _check_transport(transport, "dim_z")
        self.transport, self.return_image = transport, check_flag("return_image", return_image)
        self.solver = solvers.make(solver, **solver_options)
        self.backward = gradients.make(backward)
        start = None
        check_integer("seed", seed, low=0, high=2**63 - 1)
        if num_particles is not None:
            generator = torch.Generator().manual_seed(seed)
            shape = check_integer("num_particles", num_particles, high=2**31 - 1), dim_z
            start = torch.randn(shape, generator=generator)
        self.register_buffer("start", start)

    def extra_repr(self) -> str:
        """Shown by `print(layer)`."""
        own = None if self.start is None else len(self.start)
        image = ", return_image=True" if self.return_image else ""
        return f"num_particles={own}, solver={self.solver!r}, backward={self.backward!r}{image}"

    def forward(
        self,
        x: Tensor,
        weights: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        start: Tensor | Equilibrium | None = None,
        z_weights: Tensor | None = None,
        frozen: Tensor | None = None,
        anchors: PointClouds | None = None,
    ) -> Equilibrium:
        """Solve for the equilibrium of each cloud of the batch.

        Args:
            x: input clouds (B, m, dim_x).
            weights: (B, m), nonnegative, zero for padding, one for a plain point; ones if None. Boolean ones are a
                mask.
            mask: boolean (B, m), False for padding.
            start: start particles (B, n, dim_z), the model's own if None; or an earlier `Equilibrium` of the same
                clouds, whose scale residuals then stay relative to.
            z_weights: (B, n), zero for padding, or a boolean mask; ones if None.
            frozen: boolean (B, n): particles that the solver must not move.
            anchors: further particles (B, m, dim_z), with weights, that neither the solver nor F moves: they are part
                of the measure and condition F, and gradients reach them. What is returned are the others.

        Raises:
            TypeError, ValueError: bad shape, dtype, device, NaN, an empty or fully padded cloud.
            RuntimeError: in forward mode or under `torch.vmap`; later, of derivatives that the backward has not.
        """
        if isinstance(x, Tensor):
            refuse_transforms(x)
        context = self.transport.encode(x, _weights_of(x, weights, mask))
        particles, scale = self._start(x, start)
        if anchors is None:
            problem = Pushforward(self.transport, context, z_weights, frozen)
        else:
            points, mass = _check_clouds("anchors", anchors)
            if not hasattr(self.transport, "anchored"):
                raise TypeError(f"anchors need a transport with `anchored`, got {type(self.transport).__name__}")
            context = self.transport.anchored(context, points, mass)
            mass = points.new_ones(points.shape[:2]) if mass is None else mass
            mass = mass.sum(1, dtype=torch.promote_types(points.dtype, torch.float32))
            problem = _Anchored(mass, self.transport, context, z_weights, frozen)
        problem = problem.checked(particles, weights_name="z_weights").recorded(x)  # the autocast of the context
        with torch.no_grad():
            particles, info = solvers.run(self.solver, problem, particles, scale=scale)
        tracked, backward_info = torch.is_grad_enabled(), None
        if tracked or self.return_image:
            particles, backward_info = self.backward.attach(problem, particles)
        return Equilibrium(particles, info, backward_info if tracked else None, problem)

    def _start(self, x: Tensor, start: Tensor | Equilibrium | None) -> tuple[Tensor, Tensor | None]:
        """Start particles of clouds x, and what residuals are relative to, if that is known."""
        scale = None
        if isinstance(start, Equilibrium):
            scale = check_scale(start.info.scale, x, "start.info.scale")
            start = start.particles
        if start is None:
            if self.start is None:
                raise ValueError("start must be given: this layer has none of its own")
            return self.start.to(x.dtype).expand(x.shape[0], -1, -1), scale
        if check_cloud("start", start).shape[::2] != (x.shape[0], self.transport.dim_z):
            expected = f"({x.shape[0]}, n, {self.transport.dim_z})"
            raise ValueError(f"start must have shape {expected}, got {tuple(start.shape)}")
        if start.dtype != x.dtype:
            raise TypeError(f"start has dtype {start.dtype} but x has {x.dtype}")
        if start.device != x.device:
            raise ValueError(f"start is on {start.device} but x is on {x.device}")
        return start.detach(), scale


def _check_transport(transport: TransportMap, *dimensions: str) -> int:
    """The last of these dimensions of a map F."""
    parts = "encode", "forward", *dimensions
    if isinstance(transport, type) or not all(hasattr(transport, part) for part in parts):
        raise TypeError(f"transport must be a TransportMap, or have what one has, got {type(transport).__name__}")
    return [check_integer(f"transport.{name}", getattr(transport, name)) for name in dimensions][-1]


def _weights_of(x: Tensor, weights: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Weights of clouds x, zero where the mask is False; those given, not looked at, where there is none."""
    return weights if mask is None else check_weights("weights", weights, mask, check_cloud("x", x))


def _check_clouds(name: str, clouds: PointClouds) -> PointClouds:
    if not isinstance(clouds, (tuple, list)) or len(clouds) != 2:
        raise TypeError(f"{name} must be PointClouds, points and weights, got {type(clouds).__name__}")
    return PointClouds(*clouds)


class _Anchored(Pushforward):
    """A problem of particles beside others that do not move, of mass `mass` (B,): of the difference between the whole
    cloud and its image these cancel, and what is left has the charges that it has in the whole."""

    batched = (*Pushforward.batched, "mass")

    def __init__(self, mass: Tensor, *problem: Any):
        super().__init__(*problem)
        self.mass = mass

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
        transport: the map F of the layer.
        num_classes: classes to tell apart.
        options: of `DDEQ`, those of its solver among them.

    Raises:
        TypeError, ValueError: as `DDEQ`.
    """

    def __init__(self, transport: TransportMap, num_classes: int, **options: Any):
        super().__init__()
        dim_z = _check_transport(transport, "dim_z")
        self.ddeq = DDEQ(transport, **options)
        self.head = nn.Linear(dim_z, check_integer("num_classes", num_classes, high=2**31 - 1))

    def forward(
        self,
        x: Tensor,
        weights: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        start: Tensor | Equilibrium | None = None,
    ) -> Classification:
        """Class scores of clouds x (B, m, dim_x); arguments and errors as in `DDEQ.forward`."""
        equilibrium = self.ddeq(x, weights, mask=mask, start=start)
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
        widths: of the latent space on the way from dim_x to dim_z, increasing, see `Lift`.
        options: of `DDEQ`, those of its solver among them.

    Raises:
        TypeError, ValueError: as `DDEQ`; bad growth or widths.
    """

    def __init__(self, transport: TransportMap, growth: float = 1.275, widths: tuple[int, ...] = (), **options: Any):
        super().__init__()
        dim_z = _check_transport(transport, "dim_x", "dim_z")
        self.growth = check_growth(growth)
        if not isinstance(widths, (tuple, list)):
            raise TypeError(f"widths must be a tuple of widths, got {widths!r}")
        dims = transport.dim_x, *(check_integer("widths", width) for width in widths), dim_z
        if any(wide <= narrow for narrow, wide in pairwise(dims)):
            raise ValueError(f"widths must increase from dim_x = {dims[0]} to dim_z = {dim_z}, got {tuple(widths)}")
        self.lift = Lift(dims)
        self.ddeq = DDEQ(transport, None, **options)

    def extra_repr(self) -> str:
        """Shown by `print(completer)`."""
        return f"growth={self.growth:g}"

    def draw_start(
        self,
        x: Tensor,
        weights: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> PointClouds:
        """Random points for the completion to start from, `missing_points` a cloud, of weight one.

        They are normal, with the mean and the deviation that each coordinate has over the points of the cloud.

        Args:
            x, weights, mask: partial clouds, as in `forward`.
            noise: (B, n, dim_x), standard normal, n at least what the cloud that misses most needs; drawn if None.

        Raises:
            TypeError, ValueError: bad shape, dtype, device, NaN, an empty or fully padded cloud.
        """
        self._check(x)
        present = check_weights("weights", weights, mask, x) > 0
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
        mask: Tensor | None = None,
        start: PointClouds | None = None,
        noise: Tensor | None = None,
    ) -> Completion:
        """Complete clouds.

        Args:
            x: partial clouds (B, m, dim_x).
            weights: (B, m), nonnegative, zero for padding; ones if None. Boolean ones are a mask.
            mask: boolean (B, m), False for padding.
            start: start points (B, n, dim_x) and weights, `draw_start(x, weights, noise)` if None.
            noise: see `draw_start`; not beside start, which needs none.

        Raises:
            TypeError, ValueError: bad shape, dtype, device, NaN, an empty or fully padded cloud.
        """
        if start is not None and noise is not None:
            raise ValueError("noise must be None where start is given, which it is for")
        self._check(x)
        weights = _weights_of(x, weights, mask)
        start = self.draw_start(x, weights, noise) if start is None else _check_clouds("start", start)
        check_cloud("start", start.points, like=("x", x))
        new = check_weights("start.weights", start.weights, None, start.points)
        dtype = next(self.lift.parameters()).dtype
        if x.dtype != dtype:
            raise TypeError(f"x has dtype {x.dtype} but the network has {dtype}")
        start = PointClouds(torch.where(new[..., None] > 0, start.points, 0), new)
        kept = compact(x, check_weights("weights", weights, None, x))
        anchors, lifted = (self._lifted(*cloud) for cloud in (kept, start))
        equilibrium = self.ddeq(x, weights, start=lifted.points, z_weights=new, anchors=anchors)
        lowered = torch.where(start.mask[..., None], self.lift.inverse(equilibrium.particles), 0)
        charges = torch.cat((kept.weights, new), 1)
        observed = torch.cat((kept.mask, torch.zeros_like(start.mask)), 1)
        return Completion(torch.cat((kept.points, lowered), 1), charges, observed, equilibrium)

    def _check(self, x: Tensor) -> None:
        dim = self.lift.dims[0]
        if isinstance(x, Tensor) and (x.dim() != 3 or x.shape[-1] != dim):
            raise ValueError(f"x must have shape (B, m, {dim}), got {tuple(x.shape)}")
        check_cloud("x", x)
        device = next(self.lift.parameters()).device
        if x.device != device:
            raise ValueError(f"x is on {x.device} but the network is on {device}")

    def _lifted(self, points: Tensor, weights: Tensor) -> PointClouds:
        return PointClouds(torch.where((weights > 0)[..., None], self.lift(points), 0), weights)


def check_growth(growth: float) -> float:
    """`growth` as a number above one; raises TypeError or ValueError."""
    return check_number("growth", growth, low=1.0, high=1e6)


def missing_points(weights: Tensor, growth: float) -> Tensor:
    """How many points completion adds to clouds: growth n - n, rounded down, one at least; (B,) int64.

    Args:
        weights: (B, m), zero for padding, or a boolean mask.
        growth: greater than one.

    Raises:
        TypeError, ValueError: bad weights or growth.
    """
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights must be a torch.Tensor, got {type(weights).__name__}")
    if weights.dim() != 2:
        raise ValueError(f"weights must have shape (B, m), got {tuple(weights.shape)}")
    count = (weights > 0).sum(1)
    return ((check_growth(growth) * count.double() + 1e-9).long() - count).clamp_min(1)
