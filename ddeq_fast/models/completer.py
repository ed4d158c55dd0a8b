"""Completion of partial clouds."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddeq_fast.clouds import PointClouds, compact
from ddeq_fast.models.layer import DDEQ, Equilibrium, check_clouds, check_transport, weights_of
from ddeq_fast.networks import Lift, TransportMap
from ddeq_fast.utils.validation import check_choice, check_cloud, check_integer, check_number, check_weights

# Weights of new points: all one, or what a layer on the equilibrium says.
MASSES = ("equal", "learned")
UNIT_MASS = math.log(math.e - 1)  # softplus of it is one


class Completion(NamedTuple):
    """points: completed clouds (B, n, d), the points of the partial cloud, then the new ones, zero at padding;
    weights: (B, n), zero for padding; of new points one, or less where more of them were asked for, or more; or what
    the model learned to give them;
    observed: (B, n), True for points of the partial cloud;
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

    Where `transport.dim_label` is dim_x, each point has a label: the point where it starts, and for an observed one its
    own position, before they are lifted. The new points are then a distribution at equilibrium, not one spot; more of
    them, at test time, are more of the same distribution, and share the mass that `growth` gives them.

    How much is missing differs from cloud to cloud. With `mass="learned"` a new point has the weight that its particle
    z at equilibrium tells, softplus(<a, z> + b) times what `growth` gives it, one at the start of training: not only
    where the missing points are but how much of the cloud they make up is then learned.

    Args:
        transport: the map F of the layer, whose dim_label is zero or dim_x.
        growth: points of a completed cloud for each point of the partial one, rounded down; greater than one.
        mass: "equal", every new point weighs one, or "learned".
        widths: of the latent space on the way from dim_x to dim_z, increasing, see `Lift`.
        options: of `DDEQ`, those of its solver among them.

    Raises:
        TypeError, ValueError: as `DDEQ`; bad growth or widths, an unknown mass.
    """

    def __init__(
        self,
        transport: TransportMap,
        growth: float = 1.275,
        widths: tuple[int, ...] = (),
        *,
        mass: str = "equal",
        **options: Any,
    ):
        super().__init__()
        dim_z = check_transport(transport, "dim_x", "dim_z")
        if getattr(transport, "dim_label", 0) not in (0, transport.dim_x):
            expected = f"0 or dim_x = {transport.dim_x}"
            raise ValueError(f"transport must have a dim_label of {expected}, got {transport.dim_label}")
        self.growth, self.mass = check_growth(growth), check_choice("mass", mass, MASSES)
        if not isinstance(widths, (tuple, list)):
            raise TypeError(f"widths must be a tuple of widths, got {widths!r}")
        dims = transport.dim_x, *(check_integer("widths", width) for width in widths), dim_z
        if any(wide <= narrow for narrow, wide in pairwise(dims)):
            raise ValueError(f"widths must increase from dim_x = {dims[0]} to dim_z = {dim_z}, got {tuple(widths)}")
        self.lift = Lift(dims)
        self.ddeq = DDEQ(transport, None, **options)
        self.to_mass = nn.Linear(dim_z, 1) if mass == "learned" else None
        if self.to_mass is not None:
            nn.init.zeros_(self.to_mass.weight)
            nn.init.constant_(self.to_mass.bias, UNIT_MASS)

    def extra_repr(self) -> str:
        """Shown by `print(completer)`."""
        return f"growth={self.growth:g}, mass={self.mass!r}"

    def draw_start(
        self,
        x: Tensor,
        weights: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        growth: float | None = None,
        points: int | None = None,
    ) -> PointClouds:
        """Random points for the completion to start from, `missing_points` a cloud, of weight one.

        They are normal, with the mean and the deviation that each coordinate has over the points of the cloud. Another
        number of them than the model's own, by `growth` or `points`, has the mass of that together.

        Args:
            x, weights, mask, growth, points: as in `forward`.
            noise: (B, n, dim_x), standard normal, n at least what the cloud that misses most needs; drawn if None.

        Raises:
            TypeError, ValueError: bad shape, dtype, device, NaN, an empty or fully padded cloud.
        """
        self._check(x)
        present = check_weights("weights", weights, mask, x) > 0
        own, count = missing_points(present, self.growth), present.sum(1)[:, None, None]
        missing = self._missing(present, own, growth, points)
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
        return PointClouds(
            (mean + variance.sqrt() * noise) * new[..., None], new * (own / missing)[:, None].to(x.dtype)
        )

    @staticmethod
    def _missing(present: Tensor, own: Tensor, growth: float | None, points: int | None) -> Tensor:
        """How many points are added to clouds of which so many points are `present`, `own` by default; (B,)."""
        if growth is not None and points is not None:
            raise ValueError(f"points must be None where growth is given, got {points!r}")
        if growth is not None:
            return missing_points(present, growth)
        if points is None:
            return own
        most = int(present.sum(1).max())
        if check_integer("points", points, high=2**31 - 1) <= most:
            raise ValueError(f"points must be more than those of the partial clouds, {most}, got {points}")
        return points - present.sum(1)

    def forward(
        self,
        x: Tensor,
        weights: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        start: PointClouds | None = None,
        noise: Tensor | None = None,
        growth: float | None = None,
        points: int | None = None,
    ) -> Completion:
        """Complete clouds.

        Args:
            x: partial clouds (B, m, dim_x).
            weights: (B, m), nonnegative, zero for padding; ones if None. Boolean ones are a mask.
            mask: boolean (B, m), False for padding.
            start: start points (B, n, dim_x) and weights, `draw_start(x, weights, noise)` if None.
            noise: see `draw_start`; not beside start, which needs none.
            growth: in the place of the model's own, for more points or fewer, of the same mass; not beside start.
            points: of every completed cloud, observed ones included, in the place of growth.

        Raises:
            TypeError, ValueError: bad shape, dtype, device, NaN, an empty or fully padded cloud.
        """
        for name, given in (("noise", noise), ("growth", growth), ("points", points)):
            if start is not None and given is not None:
                raise ValueError(f"{name} must be None where start is given, which it is for")
        self._check(x)
        weights = weights_of(x, weights, mask)
        if start is None:
            start = self.draw_start(x, weights, noise, growth=growth, points=points)
        start = check_clouds("start", start)
        check_cloud("start", start.points, like=("x", x))
        new = check_weights("start.weights", start.weights, None, start.points)
        dtype = next(self.lift.parameters()).dtype
        if x.dtype != dtype:
            raise TypeError(f"x has dtype {x.dtype} but the network has {dtype}")
        start = PointClouds(torch.where(new[..., None] > 0, start.points, 0), new)
        kept = compact(x, check_weights("weights", weights, None, x))
        anchors, lifted = (self._lifted(*cloud) for cloud in (kept, start))
        labels = {"labels": start.points, "anchor_labels": kept.points} if self.ddeq.dim_label else {}
        equilibrium = self.ddeq(x, weights, start=lifted.points, z_weights=new, anchors=anchors, **labels)
        lowered = torch.where(start.mask[..., None], self.lift.inverse(equilibrium.particles), 0)
        if self.to_mass is not None:
            new = new * F.softplus(self.to_mass(equilibrium.particles)[..., 0])
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
