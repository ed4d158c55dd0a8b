"""The sums as one would write them without this package: plain PyTorch, and KeOps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from ddeq_fast import Gaussian, RadialKernel, Riesz


def build(op: str, kernel: RadialKernel) -> Callable:
    """The operation of a `Case` from explicit differences (B, m, n, d), for torch.compile to fuse."""

    def sums(x, y, v):
        d = x[:, :, None] - y[:, None]
        q = (d * d).sum(-1)
        f = ((v[:, None] * kernel.phi(q))[..., None] * d).sum(2)
        return (v[:, None] * kernel.k(q)).sum(-1), f

    def tangent(x, y, v, s, t):
        d, move = x[:, :, None] - y[:, None], s[:, :, None] - t[:, None]
        q, along = (d * d).sum(-1), (d * move).sum(-1)
        phi, bend = v[:, None] * kernel.phi(q), 2 * v[:, None] * kernel.dphi(q) * along
        return (phi * along).sum(-1), (phi[..., None] * move + bend[..., None] * d).sum(2)

    def mmd(z, w):
        u, f = sums(z, z, w)
        return (w * u).sum(-1), u, f

    return {"sums": sums, "tangent": tangent, "mmd": mmd}[op]


def keops_refusal(op: str, kernel: RadialKernel) -> str | None:
    """Why KeOps has no formula for this here, or None."""
    if importlib.util.find_spec("pykeops") is None:
        return "pykeops is not installed"
    if op == "tangent" or type(kernel) not in (Gaussian, Riesz) or (type(kernel) is Riesz and kernel.r != 1):
        return "no formula written"
    return None


def keops(op: str, kernel: RadialKernel) -> Callable:
    """Potential and field as KeOps reductions; two passes over the pairs, as its user would write them."""
    from pykeops.torch import LazyTensor

    def sums(x, y, v):
        x_i, y_j, v_j = LazyTensor(x[:, :, None]), LazyTensor(y[:, None]), LazyTensor(v[:, None, :, None])
        d = x_i - y_j
        q = (d**2).sum(-1)
        if type(kernel) is Riesz:
            k, phi = -q.sqrt(), -q.rsqrt()
        else:
            k = (q * (-0.5 / kernel.sigma**2)).exp()
            phi = k * (-1 / kernel.sigma**2)
        return (k * v_j).sum(2).squeeze(-1), (phi * v_j * d).sum(2)

    def mmd(z, w):
        u, f = sums(z, z, w)
        return (w * u).sum(-1), u, f

    return mmd if op == "mmd" else sums


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()
