"""The sums as one would write them in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

from ddeq_fast import RadialKernel


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
