"""Triton backends: fused kernels on a GPU, in float32 and float64; half-precision clouds are summed in float32.

With the environment variable TRITON_INTERPRET=1, set before Python starts, they run on the CPU, slowly, for tests.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq_fast.sums.radial import RadialKernel, elementary, unknown
from ddeq_fast.utils.optional import available, install
from ddeq_fast.utils.validation import check_choice

OLDEST = (3, 4)
MAX_DIMENSION = 1024
PRECISIONS = ("tf32x3", "tf32", "bf16")


def unsupported(x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
    """Needs a GPU of compute capability 8.0, an elementary kernel or a mixture of them."""
    if x.device.type != "cuda" and not (_interpreted() and x.device.type == "cpu"):
        return f"needs a tensor on a GPU (or TRITON_INTERPRET=1 for the CPU), got one on {x.device.type}"
    if not available("triton"):
        return f"triton is not installed: {install('triton')}"
    if _version() < OLDEST:
        return f"needs triton {'.'.join(map(str, OLDEST))} or above, got {'.'.join(map(str, _version()))}"
    if x.is_cuda and _too_old(x.device.index):
        return "needs a GPU of compute capability 8.0 or above"
    strange = unknown(kernel, _names())
    if strange:
        return f"has no code for the kernel {strange}"
    if x.shape[-1] > MAX_DIMENSION:
        return f"needs d <= {MAX_DIMENSION}, got d = {x.shape[-1]}"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes")


@functools.cache
def _version() -> tuple[int, int]:
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def _too_old(device: int | None) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0)


@functools.cache
def _names() -> tuple[str, ...]:
    """Kernels that Triton code is written for."""
    from ddeq_fast.kernels import radial

    return tuple(radial.KNOWN)


@functools.lru_cache(maxsize=256)
def _lowered(kernel: RadialKernel) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The kernel as `ddeq_fast.kernels.radial` takes it: names that select code, and run-time numbers."""
    from ddeq_fast.kernels import radial

    terms = elementary(kernel)
    return tuple(term.code for _, term in terms), radial.parameters([(weight, term.number) for weight, term in terms])


@dataclass(frozen=True)
class Triton:
    """The backend with a given precision of matrix products, which float32 sums above d = 8 are made of.

    "tf32x3" is as good as float32; "tf32" and "bf16" are faster, their factors rounded to 11 and 8 bits.
    """

    precision: str = "tf32x3"

    def __post_init__(self):
        check_choice("precision", self.precision, PRECISIONS)

    @property
    def rough(self) -> bool:
        """Whether products of points are rounded, by what nothing bounds."""
        return self.precision != "tf32x3"

    def unsupported(self, x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
        """See `Backend.unsupported`."""
        if self.precision == "bf16" and not x.is_cuda:
            return "bf16 needs a tensor on a GPU: Triton's interpreter multiplies bfloat16 as integers"
        return unsupported(x, y, kernel)

    def evaluate(self, x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
        """See `Backend.evaluate`."""
        sums, options = self._sums(x, y)
        with torch.cuda.device_of(x):
            return sums.evaluate(x, y, v, *_lowered(kernel), potential, field, **options)

    def energy(self, z: Tensor, w: Tensor, kernel: RadialKernel, field: bool):
        """See `Backend`: for few particles value, potential and field are one launch."""
        from ddeq_fast.kernels import direct

        if z.shape[1] > direct.FEW_SOURCES:
            u, f = self.evaluate(z, z, w, kernel, True, field)
            return (w * u).sum(-1), u, f
        with torch.cuda.device_of(z):
            return direct.energy(z, w, *_lowered(kernel), field)

    def tangent(self, x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel):
        """See `Backend.tangent`."""
        sums, options = self._sums(x, y)
        with torch.cuda.device_of(x):
            return sums.tangent(x, y, v, s, t, *_lowered(kernel), **options)

    def _sums(self, x: Tensor, y: Tensor):
        """The module of kernels for these clouds, and its options."""
        from ddeq_fast.kernels import direct, high_d, low_d

        if y.shape[1] <= direct.FEW_SOURCES:
            return direct, {}
        if x.shape[2] <= low_d.MAX_DIMENSION:
            return low_d, {}
        # Tensor cores sum products of float64 slowly or not at all.
        return (direct, {}) if x.dtype == torch.float64 else (high_d, {"precision": self.precision})
