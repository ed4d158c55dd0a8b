"""Fixed-point problems on clouds: what a solver may ask of F, and how far a cloud is from its image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ddeq_fast.sums.mmd import normalised
from ddeq_fast.sums.operators import energy, energy_plain
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils import transforms, tree
from ddeq_fast.utils.differentiation import twice_differentiable
from ddeq_fast.utils.precision import Autocast
from ddeq_fast.utils.validation import (
    FLOATS,
    check_alike,
    check_called,
    check_choice,
    check_cloud,
    check_finite,
    check_mask,
    check_weights,
)

if TYPE_CHECKING:
    from typing_extensions import Self

SPACES = ("product", "marginal")
# Largest coordinates, and one over the least, whose squares float64 holds.
_WIDEST = 1e139


class Pushforward:
    """Find Z with F(., context)#mu_Z = mu_Z.

    Particles may have labels e, coordinates that nothing moves: mu is a measure on points (z, e) of the product space,
    F acts as (z, e) -> (F(z, e), e). The discrepancy of such clouds, which is the residual, what the flow descends and
    what the bilevel gradient differentiates, is that of measures on the product space: it pairs every particle with its
    own image. That of the marginals alone vanishes where F permutes particles, too.

    Args:
        func: F, called as func(z, context, weights) on z (B, n, d); returns the same shape. It has labels from its
            context. It may have the methods prepare(context), see `prepared`, check_context(context), which raises if
            that is none of its own, check_labels(context, labels), which does if these are not its labels, and
            check_particles(z, name), if z, called `name`, is none of its clouds; and a `network_dtype`, the precision
            that it computes in.
        context: nested tuples, lists and dicts of tensors with the batch axis first; it lets finished samples be
            dropped from the batch. With None they stay and are not moved, for `func` may close over the whole batch.
        weights: weights (B, n) of the particles, zero for padding, or a boolean mask, False for padding; None means
            equal.
        frozen: boolean (B, n) or (B, n, 1), True for particles that the solver must not move.
        labels: of the particles (B, n, de), in their dtype; None for plain ones. No gradient reaches these: it does
            those in the context.
        residual_space: "product", or "marginal" for the discrepancy of the particles without their labels.

    Raises:
        TypeError, ValueError: func cannot be called so, an unknown space. All else is checked by `checked`, as `solve`
        does.
    """

    # What has the batch axis first.
    batched: ClassVar[tuple[str, ...]] = ("context", "weights", "frozen", "labels")
    # Autocast in which F is evaluated; None for that of the caller, see `recorded`.
    autocast: Autocast | None = None

    def __init__(
        self,
        func: Callable[..., Tensor],
        context: Any = None,
        weights: Tensor | None = None,
        frozen: Tensor | None = None,
        labels: Tensor | None = None,
        residual_space: str = "product",
    ):
        check_called("func", func, "z", "context", "weights")
        if isinstance(frozen, Tensor) and frozen.dim() == 3 and frozen.shape[-1] == 1:
            frozen = frozen.squeeze(-1)
        self.func, self.context, self.weights, self.frozen = func, context, weights, frozen
        self.labels = labels.detach() if isinstance(labels, Tensor) else labels
        self.residual_space = check_choice("residual_space", residual_space, SPACES)
        self.separable = context is not None

    def checked(self, start: Tensor, name: str = "start", *, weights_name: str = "weights") -> Self:
        """The same problem, ready for clouds like `start` (B, n, d): a mask given for weights is in its dtype.

        Raises ValueError or TypeError if `start`, called `name`, cannot be the start of this problem.
        """
        if isinstance(start, Tensor) and start.dim() != 3:
            raise ValueError(f"{name} must have shape (B, n, d), got {tuple(start.shape)}")
        check_cloud(name, start)
        if hasattr(self.func, "check_particles"):
            self.func.check_particles(start, name)
        if hasattr(self.func, "check_context"):
            self.func.check_context(self.context)
        self._check_context(start, name)
        self._check_labels(start, name)
        if self.frozen is not None:
            check_mask("frozen", self.frozen, start)
        if self.weights is None:
            return self
        problem = copy.copy(self)
        problem.weights = check_weights(weights_name, self.weights, None, start)
        return problem

    def _check_context(self, start: Tensor, name: str) -> None:
        for tensor in tree.leaves(self.context):
            if not tensor.dim() or len(tensor) != len(start):
                raise ValueError(
                    f"context must hold tensors of {len(start)} clouds, as {name} does, got {tuple(tensor.shape)}"
                )

    def _check_labels(self, start: Tensor, name: str) -> None:
        labels = self.labels
        if labels is not None:
            if not isinstance(labels, Tensor):
                raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
            if labels.dim() != 3 or labels.shape[:2] != start.shape[:2]:
                expected = f"({start.shape[0]}, {start.shape[1]}, de)"
                raise ValueError(f"labels must have shape {expected}, as {name} has, got {tuple(labels.shape)}")
            check_cloud("labels", labels)
            check_alike("labels", labels, name, start)
        if hasattr(self.func, "check_labels"):
            self.func.check_labels(self.context, labels)

    def check_image(self, z: Tensor, y: Tensor) -> None:
        """Raise ValueError if `y` cannot be the image of `z`."""
        if y.shape != z.shape:
            raise ValueError(
                f"func must map clouds (B, n, d) to as many points, {tuple(z.shape)}, got {tuple(y.shape)}"
            )

    def parts(self) -> dict[str, Any]:
        """All that has the batch axis first, by name: see `batched`."""
        return {name: getattr(self, name) for name in self.batched}

    def with_parts(self, parts: dict[str, Any]) -> Self:
        """The same problem with other `parts`."""
        problem = copy.copy(self)
        vars(problem).update(parts)
        return problem

    def select(self, index: Tensor) -> Self:
        """The problem of some samples of the batch."""
        return self.with_parts(tree.select(self.parts(), index))

    def recorded(self, z: Tensor) -> Self:
        """The same problem, whose F is evaluated under the autocast of this moment wherever that happens.

        Itself if it was recorded before: what is in its context was computed under that autocast.
        """
        if self.autocast is not None:
            return self
        problem = copy.copy(self)
        problem.autocast = Autocast(z.device.type)
        return problem

    def precision(self, z: Tensor) -> torch.dtype:
        """The lowest precision in F(z): that of the particles, of autocast, or the network's own."""
        state = self.autocast or Autocast(z.device.type)
        given = (z.dtype, state.dtype, getattr(self.func, "network_dtype", None))
        return max((dtype for dtype in given if dtype is not None), key=lambda dtype: torch.finfo(dtype).eps)

    def prepared(self) -> Self:
        """The same problem for many evaluations and products with J^T, whose context F has prepared, if it can.

        Only F and its first derivative in Z are right then.
        """
        prepare = getattr(self.func, "prepare", None)
        if prepare is None or not self.separable or transforms.active():
            return self
        with torch.no_grad():
            return self.with_parts({"context": prepare(self.context)})

    def moving(self, z: Tensor) -> Tensor:
        """Particles that are neither padding nor frozen, boolean (B, n, 1)."""
        moving = torch.ones_like(z[..., :1], dtype=torch.bool)
        if self.weights is not None:
            moving &= self.weights[..., None] > 0
        if self.frozen is not None:
            moving &= ~self.frozen.reshape(moving.shape)
        return moving

    def present(self, points: Tensor) -> Tensor:
        """Points (B, n, d) with zeros at padding, which may lie anywhere, and where no number may come from."""
        return points if self.weights is None else points.masked_fill((self.weights <= 0)[..., None], 0)

    def on_product(self, points: Tensor) -> Tensor:
        """Points (B, n, d) of a cloud or its image, as they are compared: with their labels, (B, n, d + de)."""
        labels = self._compared_labels()
        return points if labels is None else torch.cat((points, labels.to(points.dtype)), -1)

    def _compared_labels(self) -> Tensor | None:
        """Labels that a cloud and its image are compared with, zero at padding; None if they are compared without."""
        if self.labels is None or self.residual_space == "marginal":
            return None
        return self.present(self.labels)

    def image(self, z: Tensor) -> Tensor:
        """F(z), in the dtype of z."""
        with nullcontext() if self.autocast is None else self.autocast.entered():
            y = self.func(z, self.context, self.weights)
        if not isinstance(y, Tensor):
            raise TypeError(f"func must return a tensor, the image of z, got {type(y).__name__}")
        return y.to(z.dtype)

    def constrained_image(self, z: Tensor) -> Tensor:
        """F(z), with frozen particles where they are."""
        y = self.image(z)
        return y if self.frozen is None else torch.where(self.frozen[..., None], z.detach(), y)

    def linearise(self, z: Tensor, *, reusable: bool = False) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
        """F(z) and the map g -> J^T g; None in its place where F(z) does not depend on z.

        The map may be applied once, after which its memory is free, or again and again if `reusable`.
        """
        problem = self.prepared() if reusable else self
        if transforms.active():  # where requires_grad_ is refused
            y, pull, *_ = torch.func.vjp(problem.image, z.detach())
            return y, lambda g: pull(g)[0]
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            y = problem.image(z)
        if not y.requires_grad:
            return y, None

        def vjp(g: Tensor) -> Tensor:
            (out,) = torch.autograd.grad(y, z, g, allow_unused=True, retain_graph=reusable)
            return torch.zeros_like(z) if out is None else out

        return y.detach(), vjp

    def jacobian(self, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """F(z) and the maps v -> J v and g -> J^T g, both for use again and again; F is differentiated twice.

        J v is the derivative of J^T u in u: forward mode, whose levels are the whole process's, is not for threads.
        """
        context = tree.apply(torch.Tensor.detach, self.context)  # no gradient is wanted of it
        with torch.enable_grad(), twice_differentiable():
            try:
                z = z.detach().requires_grad_()
            except RuntimeError as error:
                raise RuntimeError("products with J do not run under the transforms of torch.func") from error
            y = self.with_parts({"context": context}).image(z)
            u = torch.zeros_like(y).requires_grad_()
            g = torch.autograd.grad(y, z, u, create_graph=True, allow_unused=True)[0] if y.requires_grad else None

        def product(output, given, vector):
            if output is None or not output.requires_grad:
                return torch.zeros_like(given)
            try:
                (found,) = torch.autograd.grad(output, given, vector, retain_graph=True, allow_unused=True)
            except RuntimeError as error:
                raise RuntimeError(
                    f"func must be twice differentiable, and {error}: for attention, take networks.attention.attend"
                ) from error
            return torch.zeros_like(given) if found is None else found

        return y.detach(), lambda v: product(g, u, v), lambda w: product(y, z, w)

    def product(self, product: Callable[[Tensor], Tensor], z: Tensor) -> Callable[[Tensor], Tensor]:
        """A product with J or J^T at z, of tensors in any precision; in a half one it is kept in range."""

        def widened(v):
            return product(v.to(z.dtype)).to(v.dtype)

        def scaled(v):
            largest = v.abs().amax((1, 2), keepdim=True)
            size = torch.where(largest > 0, largest.log2().floor().exp2(), 1)  # a power of 2, which costs no digits
            return widened(v / size) * size

        return widened if self.precision(z).itemsize >= 4 else scaled

    def measures(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of mass one of the cloud and of its image, (B, n) each."""
        weights = z.new_ones(z.shape[:2]) if self.weights is None else self.weights
        return (normalised(weights.to(z.dtype)),) * 2

    def squared_mmd(self, z: Tensor, y: Tensor, kernel: RadialKernel, backend: str = "auto") -> Tensor:
        """MMD^2 of the cloud and its image, (B,), summed in float64: near a fixed point it is a difference of
        nearly equal numbers that float32 does not resolve. NaN for a sample that has left the range of numbers."""
        n, labels = z.shape[1], self._compared_labels()
        width = z.shape[2] + (0 if labels is None else labels.shape[2])
        # Written where it is summed from: copies take longer than the sums of small clouds.
        points = z.new_empty((len(z), n + y.shape[1], width), dtype=torch.float64)
        points[:, :n, : z.shape[2]] = self.present(z)
        points[:, n:, : z.shape[2]] = self.present_image(y)
        if labels is not None:
            points[:, :n, z.shape[2] :] = points[:, n:, z.shape[2] :] = labels
        a, b = self.measures(points[:, :n], points[:, n:])
        charges, sums = torch.cat((a, -b), -1), energy if points.requires_grad else energy_plain
        least, most = torch.aminmax(points.detach())
        if least > -_WIDEST and most < _WIDEST and not points.requires_grad:
            return sums(points, charges, kernel, backend).clamp_min(0)
        # The sums refuse a batch for the sake of one cloud whose squares float64 does not hold.
        size = points.detach().abs().amax((1, 2))
        inside = size < _WIDEST
        points = torch.where((inside & (size > 1 / _WIDEST))[:, None, None], points, 0)
        return sums(points, charges, kernel, backend).clamp_min(0).masked_fill(~inside, torch.nan)

    def present_image(self, y: Tensor) -> Tensor:
        """An image y (B, m, d) of the cloud with zeros at its padding, as `present` has it of the cloud."""
        return self.present(y)

    def rounding(self, z: Tensor, kernel: RadialKernel, backend: str = "auto") -> Tensor:
        """MMD of the cloud and itself rounded once more, (B,) in float64: about the least residual that its
        precision allows, F's own rounding being of that size."""
        noise = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(0)).to(z)
        return self.squared_mmd(z, z * (1 + torch.finfo(z.dtype).eps * noise), kernel, backend).sqrt()

    def at_rounding(self, z: Tensor, residual: Tensor, kernel: RadialKernel, backend: str = "auto") -> Tensor:
        """Samples whose residual MMD(Z, F(Z)), absolute, is what rounding makes of it: no step lowers it; (B,)."""
        return residual <= 2 * self.rounding(z, kernel, backend)


def check_scale(scale: Tensor | None, start: Tensor, name: str = "scale") -> Tensor | None:
    """`scale` as positive float64 numbers (B,), one for each cloud of `start`; None stays None."""
    if scale is None:
        return None
    if not isinstance(scale, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(scale).__name__}")
    if scale.dtype not in FLOATS:
        raise TypeError(f"{name} must have a floating-point dtype, got {scale.dtype}")
    if scale.shape != start.shape[:1]:
        raise ValueError(f"{name} must have shape {tuple(start.shape[:1])}, got {tuple(scale.shape)}")
    check_finite(name, scale)
    if not bool((scale > 0).all()):
        raise ValueError(f"{name} must be positive, got a minimum of {float(scale.min()):g}")
    return scale.to(start.device, torch.float64)


class FixedTarget(Pushforward):
    """Move Z onto a given cloud: the constant map, whose image need not have as many points, and has no labels.

    Args:
        target: (B, m, d).
        target_weights: (B, m), nonnegative, zero for padding, or a boolean mask; None means equal.
        weights, frozen: as in `Pushforward`.

    Raises:
        TypeError, ValueError: naming the argument: bad shape or dtype, NaN, negative weights, a cloud of padding alone.
    """

    def __init__(
        self,
        target: Tensor,
        target_weights: Tensor | None = None,
        weights: Tensor | None = None,
        frozen: Tensor | None = None,
    ):
        if isinstance(target, Tensor) and target.dim() != 3:
            raise ValueError(f"target must have shape (B, m, d), got {tuple(target.shape)}")
        check_cloud("target", target)
        if target_weights is not None:
            target_weights = check_weights("target_weights", target_weights, None, target)
        super().__init__(self._constant, (target, target_weights), weights, frozen)

    def _check_context(self, start: Tensor, name: str) -> None:
        check_cloud("target", self.context[0], like=(name, start))

    @staticmethod
    def _constant(z: Tensor, context: Any, weights: Tensor | None) -> Tensor:
        return context[0]

    def check_image(self, z: Tensor, y: Tensor) -> None:
        pass  # it need not have as many points

    def image(self, z: Tensor) -> Tensor:
        return self.context[0]

    def present_image(self, y: Tensor) -> Tensor:
        weights = self.context[1]
        return y if weights is None else y.masked_fill((weights <= 0)[..., None], 0)

    def measures(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        b = self.context[1]
        b = y.new_ones(y.shape[:2]) if b is None else b
        return super().measures(z, y)[0], normalised(b.to(y.dtype))
