"""The sums as formulas, plain: every pair outright, in memory for all of them, differentiable by autograd.

The specification of what backends compute, in the names of `radial`: d = x - y, q = |d|^2. Third derivatives are taken
through it; tests and benchmarks compare with it.
"""

from __future__ import annotations

from torch import Tensor

from ddeq_fast.sums.radial import RadialKernel


def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel) -> tuple[Tensor, Tensor]:
    """u_i = sum_j v_j k(q_ij), (B, m), and f_i = sum_j v_j phi(q_ij) d_ij, (B, m, d).

    Of targets x (B, m, d), sources y (B, n, d) and charges v (B, n).
    """
    d = x[:, :, None] - y[:, None]  # (B, m, n, d)
    q = (d * d).sum(-1)
    u = (v[:, None] * kernel.k(q)).sum(-1)
    return u, ((v[:, None] * kernel.phi(q))[..., None] * d).sum(2)


def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel) -> tuple[Tensor, Tensor]:
    """Derivatives of (u, f) as x moves along s (B, m, d) and y along t (B, n, d).

    du_i = sum_j v_j phi <d, s - t> and df_i = sum_j v_j (phi (s - t) + 2 phi' <d, s - t> d).
    """
    d, move = x[:, :, None] - y[:, None], s[:, :, None] - t[:, None]  # (B, m, n, d)
    q, along = (d * d).sum(-1), (d * move).sum(-1)
    phi = v[:, None] * kernel.phi(q)
    bend = 2 * v[:, None] * kernel.dphi(q) * along
    return (phi * along).sum(-1), (phi[..., None] * move + bend[..., None] * d).sum(2)


def energy(z: Tensor, w: Tensor, kernel: RadialKernel) -> tuple[Tensor, Tensor, Tensor]:
    """sum_ij w_i w_j k(q_ij), (B,), of z (B, n, d) with charges w (B, n), and its potential and field at z."""
    u, f = evaluate(z, z, w, kernel)
    return (w * u).sum(-1), u, f
