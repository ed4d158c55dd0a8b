"""How far sums are from exact ones, found at some of their targets: `certified_error`, and `certify=` of the sums.

A sum with `certify=200` compares itself with exact sums in float64 at 200 random targets. Where the error found is
beyond the tolerance it warns; `certificates` collects what was found:

    with certificates() as found:
        u = potential(x, y, tolerance=1e-3, certify=200)
    print(found[0].error)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import dense, sampled
from ddeq_fast.sums.radial import RadialKernel, check_kernel
from ddeq_fast.utils import transforms
from ddeq_fast.utils.validation import check_charges, check_cloud, check_integer, values_readable
from ddeq_fast.utils.warning import warn


class Certificate(NamedTuple):
    """What a sum with `certify=` found of itself.

    Attributes:
        quantity: "potential", "field" or "squared_mmd"; the potential is that of `witness`, too, and the field that of
            `wasserstein_gradient`.
        backend: that carried it out, such as "tree@0.001".
        samples: targets that were compared.
        error: relative error |u - u*| / |u*|, norms over the targets (padding, at zero, among them), (B,) or a scalar,
            float64; of `squared_mmd` that of its potentials at the points of both clouds.
        absolute: |u - u*| over all targets; of `squared_mmd` |w| |u - u*|, a bound of the error of its value.
        tolerance: that `error` should keep to; None without one.
    """

    quantity: str
    backend: str
    samples: int
    error: Tensor
    absolute: Tensor
    tolerance: float | None


_collected: ContextVar[list[Certificate] | None] = ContextVar("certificates", default=None)


@contextmanager
def certificates() -> Iterator[list[Certificate]]:
    """Within it every sum with `certify=` appends what it found to this list; the innermost one counts."""
    found: list[Certificate] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


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
    clouds = (x, y, v) if batched else (x[None], y[None], v[None])
    found = found if batched else found[None]
    ((error, _),) = _errors((None, found) if is_field else (found, None), clouds, kernel, samples)
    return error if batched else error[0]


def _errors(
    found: Sequence[Tensor | None], clouds: tuple[Tensor, ...], kernel: RadialKernel, samples: int
) -> list[tuple[Tensor, Tensor]]:
    """(relative, absolute) errors (B,) of each batched sum that is not None."""
    x, y, v = (part.detach().double() for part in clouds)
    wanted = found[0] is not None, found[1] is not None
    sample = sampled.Sample(dense.evaluate, kernel, (x, y, v), sampled.some(x.shape[1], samples), wanted)
    offs = sample.off([None if part is None else part.detach().double() for part in found])
    return [
        (torch.where(off == 0, 0.0, off / size), off * x.shape[1] ** 0.5)
        for off, size in zip(offs, sample.size(), strict=True)
    ]


def check_certify(certify: int, backend: str, x: Tensor) -> int:
    """How many targets are to be compared; raises TypeError or ValueError where they cannot, or for no purpose."""
    samples = check_integer("certify", certify)
    if transforms.active() or not values_readable(x):
        raise ValueError(
            f"certify must be None under the transforms of torch.func and where values cannot be read, got {certify}"
        )
    if backends.sharded(backend):
        raise ValueError(f"certify must be None for backend {backend!r}, a sum over shards, got {certify}")
    if _collected.get() is None and backends.tolerance(backend) is None:
        raise ValueError(
            "certify finds an error that nobody is told: pass a tolerance, beyond which it warns, or sum inside "
            f"`with ddeq_fast.sums.certify.certificates() as found`; got {certify} and backend {backend!r}"
        )
    return samples


def certify_sums(
    sums: tuple[Tensor | None, Tensor | None],
    clouds: tuple[Tensor, Tensor, Tensor],
    kernel: RadialKernel,
    backend: str,
    samples: int,
    batched: bool,
    quantity: str = "potential",
) -> None:
    """Compare potentials and fields, None for what was not wanted: note what is found, and warn of what is too much.

    Clouds are batched x, y and charges v. The quantity may be "squared_mmd", of which these are the potentials: then v
    are its weights.
    """
    x, y, v = clouds
    chosen, tolerance = backends.resolve(backend, x, y, kernel), backends.tolerance(backend)
    wanted = [name for name, part in zip((quantity, "field"), sums, strict=True) if part is not None]
    for name, (error, absolute) in zip(wanted, _errors(sums, clouds, kernel, samples), strict=True):
        if name == "squared_mmd":
            absolute = absolute * v.detach().double().norm(dim=1)
        if not batched:
            error, absolute = error[0], absolute[0]
        noted = Certificate(name, chosen, min(samples, x.shape[1]), error, absolute, tolerance)
        if (collected := _collected.get()) is not None:
            collected.append(noted)
        worst = float(error.max())
        if tolerance is not None and not worst <= tolerance:
            what = "potential in squared_mmd" if name == "squared_mmd" else name
            warn(
                f"{what} by backend {chosen!r} is off by {worst:.2g} at {noted.samples} targets, beyond the tolerance "
                f"{tolerance:g}",
                RuntimeWarning,
            )
