"""Dense backend: pairwise matrices in plain PyTorch, a block of targets at a time. Any device, d and float."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ddeq_fast.radial import RadialKernel

# Entries a block of pairwise values may hold: bounds memory (64 MiB in float32) at no cost in speed.
BLOCK_ENTRIES = 1 << 24
# Up to this dimension the differences x_i - y_j are formed outright; above it they would dominate the cost.
DIFFERENCE_DIMENSION = 8


def unsupported(x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
    """Everything runs here."""
    return None


def _blocks(x: Tensor, y: Tensor):
    """Slices of the targets such that a block times all sources stays within BLOCK_ENTRIES."""
    d = x.shape[2]
    row = x.shape[0] * y.shape[1] * (d if d <= DIFFERENCE_DIMENSION else 1)
    rows = max(1, BLOCK_ENTRIES // row)
    return [slice(i, i + rows) for i in range(0, x.shape[1], rows)]


def _joined(parts):
    """Concatenate blocks along the targets; None where a quantity was not wanted."""
    return tuple(None if p[0] is None else (p[0] if len(p) == 1 else torch.cat(p, 1)) for p in zip(*parts, strict=True))


def _in_full_precision(sums):
    """Run `sums` in single precision at least: autocast would cancel a discrepancy away, and cdist has no half."""

    @functools.wraps(sums)
    def run(*args):
        device, dtype = args[0].device.type, args[0].dtype
        if dtype in (torch.float16, torch.bfloat16):
            args = [a.float() if isinstance(a, Tensor) else a for a in args]
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                results = sums(*args)
        else:
            results = sums(*args)
        return tuple(None if r is None else r.to(dtype) for r in results)

    return run


@_in_full_precision
def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
    """See `Backend.evaluate`."""
    return _joined([_evaluate(x[:, rows], y, v, kernel, potential, field) for rows in _blocks(x, y)])


def _centred(x, y, mass):
    """Both clouds about the centre of `mass` on y: products of coordinates lose digits far from the origin.

    A mass of zero where a point has no influence keeps padding, wherever it lies, from moving the centre.
    """
    centre = (mass[:, None] @ y) / mass.sum(-1).clamp_min(torch.finfo(y.dtype).tiny)[:, None, None]
    return x - centre, y - centre


def _evaluate(x, y, v, kernel, potential, field):
    if x.shape[2] <= DIFFERENCE_DIMENSION:
        d = x[:, :, None] - y[:, None]
        q = torch.linalg.vecdot(d, d)
    else:
        d = None
        q = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    u = torch.matmul(kernel.k(q), v[..., None]).squeeze(-1) if potential else None
    if not field:
        return u, None
    w = kernel.phi(q) * v[:, None]
    if d is not None:
        return u, (w[..., None, :] @ d).squeeze(-2)
    # A point exerts no force on itself; left to cancel below, it would leave its rounding error behind.
    w = w.masked_fill(q == 0, 0)
    x, y = _centred(x, y, v.abs())
    return u, w.sum(-1, keepdim=True) * x - w @ y


@_in_full_precision
def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel):
    """See `Backend.tangent`."""
    return _joined([_tangent(x[:, rows], y, v, s[:, rows], t, kernel) for rows in _blocks(x, y)])


def _tangent(x, y, v, s, t, kernel):
    q = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    x, y = _centred(x, y, v.abs() * (t.norm(dim=-1) + s.norm(dim=(-2, -1))[:, None]))
    # <d, s_i - t_j> from four products: no (m, n, d) array.
    along = torch.linalg.vecdot(x, s)[:, :, None] - s @ y.mT - x @ t.mT + torch.linalg.vecdot(y, t)[:, None]
    phi = kernel.phi(q) * v[:, None]
    bend = 2 * kernel.dphi(q) * v[:, None] * along
    du = torch.sum(phi * along, -1)
    df = phi.sum(-1, keepdim=True) * s - phi @ t + bend.sum(-1, keepdim=True) * x - bend @ y
    return du, df
