"""Kernels, MMD and witness function of the original DDEQ code, with its names and arguments, on the sums here."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ddeq_fast.sums import mmd
from ddeq_fast.sums.radial import Gaussian, RadialKernel, Riesz
from ddeq_fast.utils.validation import check_cloud, check_flag, check_number


def gaussian_kernel(x: Tensor, y: Tensor, sigma: float = 1.0) -> Tensor:
    """exp(-|x_i - y_j|^2 / (2 sigma^2)) of x (..., n, d) and y (..., m, d): (..., n, m).

    Above all a value of the argument `kernel`, alone or in a `functools.partial`; so is `riesz_kernel`.

    Raises TypeError, ValueError: x or y are no clouds of one dimension, sigma is not positive.
    """
    check_number("sigma", sigma)
    return Gaussian(sigma).k(_squared_distances(x, y))


def riesz_kernel(x: Tensor, y: Tensor, r: float = 1.0) -> Tensor:
    """-|x_i - y_j|^r of x (..., n, d) and y (..., m, d): (..., n, m).

    Raises TypeError, ValueError: x or y are no clouds of one dimension, r outside (0, 2).
    """
    return Riesz(r).k(_squared_distances(x, y))


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    for name, cloud in (("x", x), ("y", y)):
        if not isinstance(cloud, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(cloud).__name__}")
        if cloud.dim() < 2 or not cloud.is_floating_point():
            got = f"{cloud.dtype} {tuple(cloud.shape)}"
            raise ValueError(f"{name} must be floating-point of shape (..., n, d), got {got}")
    try:
        torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"y must have a batch that goes with that of x, {tuple(x.shape)}, got {tuple(y.shape)}"
        ) from None
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"y must have points in dimension {x.shape[-1]}, as x has, got {y.shape[-1]}")
    if x.dtype != y.dtype:
        raise TypeError(f"y has dtype {y.dtype} but x has {x.dtype}")
    if x.device != y.device:
        raise ValueError(f"y is on {y.device} but x is on {x.device}")
    return (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)


def radial(kernel: Callable[..., Tensor], sigma: float) -> RadialKernel:
    """What `kernel` and `sigma` mean here; raises ValueError for a function that is not of this module."""
    function, bound = kernel, {}
    if isinstance(kernel, functools.partial) and not kernel.args:
        function, bound = kernel.func, kernel.keywords
    if function is gaussian_kernel and not set(bound) - {"sigma"}:  # sigma overrules a bound one there too
        return Gaussian(check_number("sigma", sigma))
    if function is riesz_kernel and not set(bound) - {"r"}:
        return Riesz(**bound)
    raise ValueError(
        f"kernel must be gaussian_kernel or riesz_kernel of this module, or a functools.partial of one, got {kernel!r}"
    )


def padding_mask(name: str, cloud: Tensor, wanted: bool) -> Tensor | None:
    """True for rows that are no padding, if `wanted`, an argument of that name; there, padding is a row of zeros."""
    return real_rows(cloud) if check_flag(name, wanted) else None


def real_rows(cloud: Tensor) -> Tensor:
    """(n,) or (B, n), False for rows of zeros."""
    return (cloud != 0).any(-1)


def squared_mmd(
    x: Tensor,
    y: Tensor,
    sigma: float = 1.0,
    kernel: Callable[..., Tensor] = gaussian_kernel,
    mask_x: bool = False,
    mask_y: bool = False,
) -> Tensor:
    """MMD^2 between clouds x (n, d) or (B, n, d) and y (m, d) or (B, m, d): a scalar, or (B,).

    Args:
        sigma: bandwidth of the Gaussian kernel.
        kernel: `gaussian_kernel`, `riesz_kernel` or a `functools.partial` of one.
        mask_x, mask_y: take rows of zeros for padding.

    Raises:
        TypeError, ValueError: as `ddeq_fast.squared_mmd`, or a kernel that is not of this module.
    """
    check_cloud("x", x)
    check_cloud("y", y)
    x_mask, y_mask = padding_mask("mask_x", x, mask_x), padding_mask("mask_y", y, mask_y)
    return mmd.squared_mmd(x, y, radial(kernel, sigma), x_mask=x_mask, y_mask=y_mask)


def gaussian_witness_function(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    sigma: float = 1.0,
    mask_x: bool = False,
    mask_y: bool = False,
    mask_z: bool = False,
    kernel: Callable[..., Tensor] = gaussian_kernel,
) -> Tensor:
    """Witness function mean_i k(x_i, z) - mean_j k(y_j, z), for any `kernel`, at z (l, d) or (B, l, d): (l,) or (B, l).

    Zero at rows of zeros if `mask_z`; other arguments and errors as in `squared_mmd`.
    """
    for name, cloud in (("x", x), ("y", y), ("z", z)):
        check_cloud(name, cloud)
    x_mask, y_mask = padding_mask("mask_x", x, mask_x), padding_mask("mask_y", y, mask_y)
    z_mask = padding_mask("mask_z", z, mask_z)
    value = mmd.witness(z, x, y, radial(kernel, sigma), x_mask=x_mask, y_mask=y_mask)
    return value if z_mask is None else value * z_mask
