"""The DDEQ layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddeq_fast import gradients, solvers
from ddeq_fast.clouds import PointClouds
from ddeq_fast.gradients import Backward, BackwardInfo
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import SPACES, Pushforward, SolveInfo, Solver, check_scale, refuse_transforms
from ddeq_fast.utils.validation import check_alike, check_choice, check_cloud, check_flag, check_integer, check_weights


class Equilibrium(NamedTuple):
    """Where a DDEQ layer came to rest.

    particles: (B, n, d), differentiable. info: how the forward solve went. backward_info: how the backward one went,
    filled in when it runs; None without gradients. problem: F with its context, for evaluations at the equilibrium.
    labels: of the particles, (B, n, de), detached; None of plain ones.
    """

    particles: Tensor
    info: SolveInfo
    backward_info: BackwardInfo | None
    problem: Pushforward

    @property
    def labels(self) -> Tensor | None:
        return self.problem.labels


# Labels of a layer's own.
LABELS = ("learned", "drawn")


class DDEQ(nn.Module):
    """Distributional deep equilibrium layer: x -> Z* with F(., x)#mu = mu (Geuter et al. 2025).

    Where `transport.dim_label` is positive, particles are (z, e) with labels e that nothing moves, see `TransportMap`.
    Where each comes to rest is then decided by its label alone, and any number of labels of one law belong to the same
    equilibrium. All particles start at zero, unless a start is given.

    Args:
        transport: F, with `encode(x, weights) -> context` and `forward(z, context, z_weights)`, and `dim_z`; also
            `anchored(context, points, weights) -> context` where there are particles beside, and `dim_label` and
            `labelled(context, labels, z_weights) -> context` where they have labels.
        num_particles: particles of the latent cloud; None for a layer that has no start, or no labels, of its own.
        solver: "auto", "anderson", "flow", another registered name, or a `Solver`.
        backward: "phantom", "ift", "bilevel", another registered name, or a `Backward`, such as `Phantom(steps=3)`.
        labels: the layer's own labels: "learned" ones are a parameter, "drawn" ones fixed. None for "learned" where the
            transport has labels.
        residual_space: "product" compares particles with their labels, so that a small residual says that each is its
            own image; "marginal" compares them without, see `Pushforward`.
        seed: of the start cloud or the labels, drawn once from a standard normal distribution and saved with the model.
        return_image: what is returned with gradients disabled. False: the solution itself; with gradients enabled it is
            its image under the tracked evaluations of the backward, the same up to the residual. True: that image
            always, which a model trained with few steps, far from equilibrium, needs to do what it was trained for.
        solver_options: options of a solver given by name: `DDEQ(transport, solver="auto", tol=1e-4)`. A backward with
            options is given as an object.

    Raises:
        TypeError, ValueError: an option out of range, one that the solver has not, or a transport that is none.
    """

    start: Tensor | None
    labels: Tensor | None

    def __init__(
        self,
        transport: TransportMap,
        num_particles: int | None = 10,
        *,
        solver: str | Solver = "auto",
        backward: str | Backward = "phantom",
        labels: str | None = None,
        residual_space: str = "product",
        seed: int = 0,
        return_image: bool = False,
        **solver_options: Any,
    ):
        super().__init__()
        dim_z = check_transport(transport, "dim_z")
        self.transport, self.return_image = transport, check_flag("return_image", return_image)
        self.solver = solvers.make(solver, **solver_options)
        self.backward = gradients.make(backward)
        self.residual_space = check_choice("residual_space", residual_space, SPACES)
        check_integer("seed", seed, low=0, high=2**63 - 1)
        self.dim_label = _check_labels(transport)
        if labels is not None:
            check_choice("labels", labels, LABELS)
            if not self.dim_label or num_particles is None:
                raise ValueError("labels must be None where num_particles is, or the transport has dim_label = 0")
        drawn = None
        if num_particles is not None:
            generator = torch.Generator().manual_seed(seed)
            shape = check_integer("num_particles", num_particles, high=2**31 - 1), self.dim_label or dim_z
            drawn = torch.randn(shape, generator=generator)
        self.register_buffer("start", None if self.dim_label else drawn)
        own = drawn if self.dim_label else None
        if labels == "drawn":
            self.register_buffer("labels", own)
        else:
            self.register_parameter("labels", None if own is None else nn.Parameter(own))

    def extra_repr(self) -> str:
        """Shown by `print(layer)`."""
        own = next((len(part) for part in (self.start, self.labels) if part is not None), None)
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
        labels: Tensor | None = None,
        anchor_labels: Tensor | None = None,
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
            labels: of the particles, (n, dim_label), or (B, n, dim_label) for labels of each cloud's own; the layer's
                own if None, on a start from an earlier equilibrium too. Gradients reach them. Any number will do.
            anchor_labels: of the anchors (B, m, dim_label), where particles have labels.

        Raises:
            TypeError, ValueError: bad shape, dtype, device, NaN, an empty or fully padded cloud.
            RuntimeError: in forward mode or under `torch.vmap`; later, of derivatives that the backward has not.
        """
        if isinstance(x, Tensor):
            refuse_transforms(x)
        context = self.transport.encode(x, weights_of(x, weights, mask))
        labels = self._labels(x, labels)
        particles, scale = self._start(x, start, labels)
        if labels is not None:
            if labels.shape[1] != particles.shape[1]:
                count = particles.shape[1]
                raise ValueError(f"labels must be of {count} particles, as start has, got {labels.shape[1]}")
            if z_weights is not None:
                z_weights = check_weights("z_weights", z_weights, None, particles)
            context = self.transport.labelled(context, labels, z_weights)
        parts = z_weights, frozen, labels, self.residual_space
        if anchors is None:
            if anchor_labels is not None:
                raise ValueError("anchor_labels must be None where anchors is")
            problem = Pushforward(self.transport, context, *parts)
        else:
            context, mass = self._beside(context, anchors, anchor_labels)
            problem = _Anchored(mass, self.transport, context, *parts)
        problem = problem.checked(particles, weights_name="z_weights").recorded(x)  # the autocast of the context
        with torch.no_grad():
            particles, info = solvers.run(self.solver, problem, particles, scale=scale)
        tracked, backward_info = torch.is_grad_enabled(), None
        if tracked or self.return_image:
            particles, backward_info = self.backward.attach(problem, particles)
        return Equilibrium(particles, info, backward_info if tracked else None, problem)

    def _beside(self, context: Any, anchors: PointClouds, labels: Tensor | None) -> tuple[Any, Tensor]:
        """The context of F beside anchors, and their mass (B,)."""
        points, weights = check_clouds("anchors", anchors)
        if not hasattr(self.transport, "anchored"):
            raise TypeError(f"anchors need a transport with `anchored`, got {type(self.transport).__name__}")
        if labels is not None and not self.dim_label:
            raise ValueError("anchor_labels must be None: the transport has dim_label = 0")
        given = {"labels": labels} if self.dim_label else {}
        context = self.transport.anchored(context, points, weights, **given)
        mass = points.new_ones(points.shape[:2]) if weights is None else weights
        return context, mass.sum(1, dtype=torch.promote_types(points.dtype, torch.float32))

    def _labels(self, x: Tensor, labels: Tensor | None) -> Tensor | None:
        """Labels (B, n, dim_label) of particles for clouds x; None where there are none."""
        dim = self.dim_label
        if labels is None:
            if not dim:
                return None
            if self.labels is None:
                raise ValueError("labels must be given: this layer has none of its own")
            return self.labels.to(x.dtype).expand(x.shape[0], -1, -1)
        if not dim:
            raise ValueError("labels must be None: the transport has dim_label = 0")
        check_cloud("labels", labels)
        if labels.shape[-1] != dim or (labels.dim() == 3 and len(labels) != len(x)):
            expected = f"(n, {dim}) or ({len(x)}, n, {dim})"
            raise ValueError(f"labels must have shape {expected}, got {tuple(labels.shape)}")
        check_alike("labels", labels, "x", x)
        return labels.expand(x.shape[0], -1, -1)

    def _start(
        self, x: Tensor, start: Tensor | Equilibrium | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Start particles of clouds x, with these labels, and what residuals are relative to, if that is known."""
        scale = None
        if isinstance(start, Equilibrium):
            scale = check_scale(start.info.scale, x, "start.info.scale")
            start = start.particles
        if start is None and labels is not None:
            # Where a particle starts must not depend on its place in the list: its label alone tells it from others.
            return x.new_zeros(*labels.shape[:2], self.transport.dim_z), scale
        if start is None:
            if self.start is None:
                raise ValueError("start must be given: this layer has none of its own")
            return self.start.to(x.dtype).expand(x.shape[0], -1, -1), scale
        if check_cloud("start", start).shape[::2] != (x.shape[0], self.transport.dim_z):
            expected = f"({x.shape[0]}, n, {self.transport.dim_z})"
            raise ValueError(f"start must have shape {expected}, got {tuple(start.shape)}")
        check_alike("start", start, "x", x)
        return start.detach(), scale


def _check_labels(transport: TransportMap) -> int:
    """Dimension of the labels of a map F, zero for one without."""
    dim = check_integer("transport.dim_label", getattr(transport, "dim_label", 0), low=0)
    if dim and not hasattr(transport, "labelled"):
        raise TypeError(f"transport must have `labelled` where it has dim_label, got {type(transport).__name__}")
    return dim


def check_transport(transport: TransportMap, *dimensions: str) -> int:
    """The last of these dimensions of a map F."""
    parts = "encode", "forward", *dimensions
    if isinstance(transport, type) or not all(hasattr(transport, part) for part in parts):
        raise TypeError(f"transport must be a TransportMap, or have what one has, got {type(transport).__name__}")
    return [check_integer(f"transport.{name}", getattr(transport, name)) for name in dimensions][-1]


def weights_of(x: Tensor, weights: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Weights of clouds x, zero where the mask is False; those given, not looked at, where there is none."""
    return weights if mask is None else check_weights("weights", weights, mask, check_cloud("x", x))


def check_clouds(name: str, clouds: PointClouds) -> PointClouds:
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

    def measures(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(z.dtype, torch.float32)  # half precision counts no further than 2,048
        weights = z.new_ones(z.shape[:2], dtype=wide) if self.weights is None else self.weights.to(wide)
        total = weights.sum(1, keepdim=True) + self.mass[:, None].to(wide)
        return ((weights / total).to(z.dtype),) * 2
