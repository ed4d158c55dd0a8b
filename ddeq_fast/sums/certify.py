"""How far sums are from exact ones, found at some of their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq_fast.sums.backends import dense, sampled
from ddeq_fast.sums.fields import check_kernel
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils import transforms
from ddeq_fast.utils.validation import check_charges, check_cloud, check_integer


def certified_error(
    found: Tensor,
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    charges: Tensor | None = None,
    samples: int = 1000,
) -> Tensor:
    """Relative error of potentials or fields that were found, by exact sums in float64 at random targets.

    Args:
        found: a result of `potential`, (m,) or (B, m), or of `field`, the shape of x.
        x, y, kernel, charges: as they were given to it.
        samples: targets, drawn with replacement, or all if there are no more; each costs n pairs.

    Returns:
        |found - exact| / |exact| over them, (B,) or a scalar, float64: for many targets an estimate of the error of
        `potential`'s tolerance. Infinite where exact sums are zero and those found are not. It has no gradient.

    Raises:
        TypeError, ValueError: as `potential`, for another shape of `found`, and under the transforms of torch.func.
    """
    check_cloud("x", x)
    check_cloud("y", y, like=("x", x))
    v, kernel, samples = check_charges("charges", charges, y), check_kernel(kernel), check_integer("samples", samples)
    if not isinstance(found, Tensor):
        raise TypeError(f"found must be a tensor, got {type(found).__name__}")
    if found.shape not in (x.shape, x.shape[:-1]):
        raise ValueError(f"found must have shape {tuple(x.shape[:-1])} or {tuple(x.shape)}, got {tuple(found.shape)}")
    if transforms.active():
        raise ValueError("certified_error has no derivative and does not run under the transforms of torch.func")
    batched, is_field = x.dim() == 3, found.shape == x.shape
    clouds = [part.detach().double() for part in (x, y, v, found)]
    x, y, v, found = clouds if batched else [part[None] for part in clouds]
    (error,) = sampled.errors(
        dense.evaluate, kernel, (x, y, v), (), (None, found) if is_field else (found, None), samples
    )
    relative = torch.where(error.off == 0, 0.0, error.off / error.size)
    return relative if batched else relative[0]
