"""Triton backend: fused kernels on a GPU, in float32 and float64; half-precision clouds are summed in float32.

With the environment variable TRITON_INTERPRET=1, set before Python starts, they run on the CPU, slowly, for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from ddeq_fast.radial import Gaussian, InverseMultiquadric, Laplacian, RadialKernel, Riesz

MAX_DIMENSION = 1024
_SCALED = {Gaussian: "gaussian", Laplacian: "laplacian", InverseMultiquadric: "inverse_multiquadric"}
_RIESZ = {0.5: "riesz_1/2", 1.0: "riesz_1", 1.5: "riesz_3/2"}


def unsupported(x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
    """Needs a GPU of compute capability 8.0, an elementary kernel or a mixture of them."""
    if x.device.type != "cuda" and not (_interpreted() and x.device.type == "cpu"):
        return f"needs a tensor on a GPU (or TRITON_INTERPRET=1 for the CPU), got one on {x.device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if x.is_cuda and _too_old(x.device.index):
        return "needs a GPU of compute capability 8.0 or above"
    unknown = [type(term).__name__ for _, term in kernel.terms() if type(term) not in (Riesz, *_SCALED)]
    if unknown:
        return f"has no code for the kernel {', '.join(unknown)}"
    if x.shape[-1] > MAX_DIMENSION:
        return f"needs d <= {MAX_DIMENSION}, got d = {x.shape[-1]}"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes")


@functools.cache
def _too_old(device: int | None) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0)


@functools.lru_cache(maxsize=256)
def _lowered(kernel: RadialKernel) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The kernel as `ddeq_fast.kernels.radial` takes it: names that select code, and run-time numbers."""
    from ddeq_fast.kernels import radial

    names, numbers = [], []
    for weight, term in kernel.terms():
        riesz = type(term) is Riesz
        names.append(_RIESZ.get(term.r, "riesz") if riesz else _SCALED[type(term)])
        numbers.append((weight, term.r if riesz else term.sigma))
    return tuple(names), radial.parameters(numbers)


def _sums(x: Tensor, y: Tensor):
    """The module of kernels for these clouds."""
    from ddeq_fast.kernels import direct, low_d

    if y.shape[1] <= direct.FEW_SOURCES or x.shape[2] > low_d.MAX_DIMENSION:
        return direct
    return low_d


def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
    """See `Backend.evaluate`."""
    with torch.cuda.device_of(x):
        return _sums(x, y).evaluate(x, y, v, *_lowered(kernel), potential, field)


def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel):
    """See `Backend.tangent`."""
    with torch.cuda.device_of(x):
        return _sums(x, y).tangent(x, y, v, s, t, *_lowered(kernel))
