"""KeOps backend: pair sums compiled by pykeops, linear in memory, on CPU and GPU. Imported only when used."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import shutil

import torch
from torch import Tensor

from ddeq_fast.radial import Gaussian, InverseMultiquadric, Laplacian, RadialKernel, Riesz


def unsupported(x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
    """Needs pykeops, a C++ compiler, single or double precision and elementary kernels."""
    if importlib.util.find_spec("pykeops") is None:
        return 'pykeops is not installed: pip install "ddeq_fast[keops]"'
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "pykeops needs a C++ compiler, and none of c++, g++, clang++ is on the path"
    if x.dtype not in (torch.float32, torch.float64):
        return f"needs float32 or float64, got {x.dtype}"
    unknown = [type(term).__name__ for _, term in kernel.terms() if type(term) not in _FORMULAS]
    return f"has no formula for the kernel {', '.join(unknown)}" if unknown else None


@functools.cache
def _lazy_tensor():
    """pykeops' LazyTensor; what pykeops prints when it is imported is not for our users."""
    with contextlib.redirect_stdout(io.StringIO()):
        import pykeops
        from pykeops.torch import LazyTensor

        pykeops.set_verbose(False)
    return LazyTensor


def _target(x: Tensor):
    return _lazy_tensor()(x[:, :, None].contiguous())


def _source(y: Tensor):
    return _lazy_tensor()(y[:, None].contiguous())


def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
    """See `Backend.evaluate`."""
    d = _target(x) - _source(y)
    q, charge = d.sqnorm2(), _source(v[..., None])
    # Reshaped, since pykeops drops axes where all clouds have one point.
    u = (_mixed(kernel, q, 0) * charge).sum(2).reshape(x.shape[:2]) if potential else None
    return u, ((_mixed(kernel, q, 1) * charge * d).sum(2).reshape(x.shape) if field else None)


def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel):
    """See `Backend.tangent`."""
    d, move, charge = _target(x) - _source(y), _target(s) - _source(t), _source(v[..., None])
    q, along = d.sqnorm2(), (d | move)
    phi, bend = _mixed(kernel, q, 1) * charge, _mixed(kernel, q, 2) * charge * along * 2
    return (phi * along).sum(2).reshape(x.shape[:2]), (phi * move + bend * d).sum(2).reshape(x.shape)


def _mixed(kernel: RadialKernel, q, order: int):
    """k, phi or phi' (order 0, 1, 2) of the squared distances q, as a formula."""
    total = None
    for weight, term in kernel.terms():
        value = weight * _FORMULAS[type(term)](term.r if type(term) is Riesz else term.sigma, q, order)
        total = value if total is None else total + value
    return total


def _power(q, exponent):
    """q ** exponent; the formula's own power takes its exponent in single precision."""
    if abs(exponent) == 0.5:
        return q.sqrt() if exponent > 0 else q.rsqrt()
    return (exponent * q.log()).exp()


def _riesz(r, q, order):
    # Away from zero the shift by one where q = 0 changes nothing; there it keeps negative powers finite.
    safe = q + (1 - q.sign())
    factor = (-1, -r, -r * (r / 2 - 1))[order]
    return q.sign() * (factor * _power(safe, r / 2 - order))


def _gaussian(sigma, q, order):
    return (1, -1 / sigma**2, 0.5 / sigma**4)[order] * (q * (-0.5 / sigma**2)).exp()


def _laplacian(sigma, q, order):
    safe = q + (1 - q.sign())
    decay = (-(q.sqrt() if order == 0 else safe.sqrt()) / sigma).exp()
    if order == 0:
        return decay
    if order == 1:
        return q.sign() * (decay * safe.rsqrt() * (-1 / sigma))
    return q.sign() * (decay * (1 / sigma + safe.rsqrt()) / (2 * sigma * safe))


def _inverse_multiquadric(sigma, q, order):
    factor = (1, -1 / sigma**2, 1.5 / sigma**4)[order]
    return factor * _power(1 + q / sigma**2, -0.5 - order)


_FORMULAS = {
    Riesz: _riesz,
    Gaussian: _gaussian,
    Laplacian: _laplacian,
    InverseMultiquadric: _inverse_multiquadric,
}
