"""Dense backend: pairwise matrices in plain PyTorch, a tile at a time. Any device, dimension and float.

In few dimensions the differences d_ij = x_i - y_j are formed outright. Above, all is matrix products,

    q_ij = |x_i|^2 + |y_j|^2 - 2 <x_i, y_j>,      f_i = sum_j w_ij (x_i - y_j) = x_i sum_j w_ij - sum_j w_ij y_j,

of clouds centred first. Where q is small against |x|^2 + |y|^2 both lose their digits: such near pairs are taken out
and summed from the differences of the points as they were given, for centring has rounded them. Of the other pairs q is
right to 1 / NEAR units of rounding, times some for the d products that it is made of.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ddeq_fast.sums.backends.memory import Tiles, tile_pairs
from ddeq_fast.sums.radial import RadialKernel

# Up to this dimension the differences x_i - y_j are formed outright; above it they would dominate the cost.
DIFFERENCE_DIMENSION = 8
# Pairs with q up to this part of |x|^2 + |y|^2 are near: at it, rounding costs six bits of q.
NEAR = 1 / 64
# Pairs of a cloud whose distances, for a potential, are formed from differences all the same: to look for near pairs
# takes longer.
FEW_PAIRS = 1 << 10
# Matrices alive at once, beside differences: squared distances, kernel values and what those are made of.
MATRICES = 10
# Numbers that the differences of near pairs may hold at once.
NEAR_NUMBERS = 1 << 20


def unsupported(x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
    """Everything runs here."""
    return None


def pair_bytes(d: int, itemsize: int) -> int:
    """Bytes that one pair takes while its tile is summed."""
    return max(itemsize, 4) * (MATRICES + (3 * d if d <= DIFFERENCE_DIMENSION else 0))


def in_tiles(sums, targets, sources, pair_bytes=pair_bytes) -> tuple[Tensor | None, ...]:
    """Run in single precision at least: autocast would cancel a discrepancy away, and half loses near pairs.

    See `Tiles`; pair_bytes(d, itemsize) is what one pair takes. Points come first in targets and sources.
    """
    device, dtype = targets[0].device, targets[0].dtype
    if dtype in (torch.float16, torch.bfloat16):
        targets, sources = [t.float() for t in targets], [s.float() for s in sources]
    tiles = Tiles(sums, tile_pairs(device, pair_bytes(targets[0].shape[2], dtype.itemsize)))
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            results = tiles.run(targets, sources)
    else:
        results = tiles.run(targets, sources)
    return tuple(None if r is None else r.to(dtype) for r in results)


def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool):
    """See `Backend.evaluate`."""
    tile = _evaluate_low if x.shape[2] <= DIFFERENCE_DIMENSION else _evaluate_high
    return in_tiles(functools.partial(tile, kernel, potential, field), (x,), (y, v))


def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel):
    """See `Backend.tangent`."""
    tile = _tangent_low if x.shape[2] <= DIFFERENCE_DIMENSION else _tangent_high
    return in_tiles(functools.partial(tile, kernel), (x, s), (y, v, t))


def _evaluate_low(kernel, potential, field, targets, sources):
    (x,), (y, v) = targets, sources
    d = x[:, :, None] - y[:, None]
    q = torch.linalg.vecdot(d, d)
    u = torch.matmul(kernel.k(q), v[..., None]).squeeze(-1) if potential else None
    return u, (((kernel.phi(q) * v[:, None])[..., None, :] @ d).squeeze(-2) if field else None)


def _tangent_low(kernel, targets, sources):
    (x, s), (y, v, t) = targets, sources
    d, move = x[:, :, None] - y[:, None], s[:, :, None] - t[:, None]
    q, along = torch.linalg.vecdot(d, d), torch.linalg.vecdot(d, move)
    phi, (bend, inverse) = kernel.phi(q) * v[:, None], bending(kernel, q, v[:, None], along)
    f = phi[..., None, :] @ move + bend[..., None, :] @ d.mul_(inverse[..., None])
    return torch.linalg.vecdot(phi, along), f.squeeze(-2)


def bending(kernel, q: Tensor, v: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """v c(q) <d/|d|, s - t> and 1/|d|, the factors of d/|d| apart: their product may overflow. along = <d, s - t>."""
    inverse = torch.where(q > 0, q, 1).rsqrt()
    return kernel.curvature(q) * v * (along * inverse), inverse


def centred(x: Tensor, y: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Clouds less the centre of y with masses (B, n); sources without mass, which may lie anywhere, at the centre."""
    centre = (mass[:, None] @ y) / mass.sum(-1).clamp_min(torch.finfo(y.dtype).tiny)[:, None, None]
    moved = x - centre
    return moved, (moved if y is x else y - centre).masked_fill((mass == 0)[..., None], 0)


class _Products:
    """Squared distances q (B, m, n) of a tile by a matrix product, and its near pairs from their differences.

    `mass` (B, n) is zero where a source has no influence: padding. If `forces`, pairs of a point with itself do not
    matter beyond their distance: of a cloud on itself they are many.
    """

    def __init__(self, x: Tensor, y: Tensor, mass: Tensor, *, forces: bool):
        self.given = x, y
        self.x, self.y = centred(x, y, mass)
        size = torch.linalg.vecdot(self.x, self.x)[:, :, None] + torch.linalg.vecdot(self.y, self.y)[:, None]
        self.q = torch.baddbmm(size, self.x, self.y.mT, alpha=-2)
        self.close = self.q <= size.mul_(NEAR)
        itself = forces and x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()
        if itself:
            self.q.diagonal(dim1=1, dim2=2).zero_()
            self.close.diagonal(dim1=1, dim2=2).fill_(False)
        self.pairs = self.close.nonzero()
        if itself:
            self.close.diagonal(dim1=1, dim2=2).fill_(True)
        for b, i, j in self.near():
            d = self.difference(b, i, j)
            self.q[b, i, j] = torch.linalg.vecdot(d, d)

    def difference(self, b, i, j) -> Tensor:
        """x_i - y_j of some pairs, (pairs, d)."""
        x, y = self.given
        return x[b, i] - y[b, j]

    def near(self):
        """Indices (cloud, target, source) of near pairs, a few at a time."""
        return parts(self.pairs, self.x.shape[2])

    def without_near(self, weights: Tensor) -> Tensor:
        """Weights (B, m, n) with zeros at near pairs, in place."""
        return weights.masked_fill_(self.close, 0)


def parts(pairs: Tensor, d: int):
    """Indices (cloud, target, source) of pairs (pairs, 3) in d dimensions, a few at a time."""
    return (part.unbind(1) for part in pairs.split(max(1, NEAR_NUMBERS // d)) if len(part))


def add(total: Tensor, b: Tensor, i: Tensor, terms: Tensor) -> None:
    """total[b, i] += terms, with repeated indices."""
    total.view(-1, *total.shape[2:]).index_add_(0, b * total.shape[1] + i, terms)


def _evaluate_high(kernel, potential, field, targets, sources):
    (x,), (y, v) = targets, sources
    u = _few_potentials(kernel, x, y, v) if potential else None
    if u is not None and not field:
        return u, None
    tile = _Products(x, y, v.abs(), forces=True)
    if potential and u is None:
        u = torch.matmul(kernel.k(tile.q), v[..., None]).squeeze(-1)
    if not field:
        return u, None
    w = kernel.phi(tile.q) * v[:, None]
    forces = [(b, i, j, w[b, i, j, None]) for b, i, j in tile.near()]
    w = tile.without_near(w)
    f = w.sum(-1, keepdim=True) * tile.x - w @ tile.y
    for b, i, j, weight in forces:
        add(f, b, i, weight * tile.difference(b, i, j))
    return u, f


def _few_potentials(kernel, x, y, v):
    """u of few pairs on a CPU, with a field or without; None of more."""
    if x.device.type != "cpu" or x.shape[1] * y.shape[1] > FEW_PAIRS:
        return None
    here = v != 0
    y = y if bool(here.all()) else y.masked_fill(~here[..., None], 0)  # padding may lie anywhere
    q = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
    return torch.matmul(kernel.k(q), v[..., None]).squeeze(-1)


def _tangent_high(kernel, targets, sources):
    (x, s), (y, v, t) = targets, sources
    tile = _Products(x, y, v.abs() * (t.norm(dim=-1) + s.norm(dim=(-2, -1))[:, None]), forces=False)
    x, y = tile.x, tile.y
    # <d, s_i - t_j> from four products: no (m, n, d) array.
    along = torch.baddbmm(torch.linalg.vecdot(x, s)[:, :, None] + torch.linalg.vecdot(y, t)[:, None], s, y.mT, alpha=-1)
    along = torch.baddbmm(along, x, t.mT, alpha=-1)
    for b, i, j in tile.near():
        along[b, i, j] = torch.linalg.vecdot(tile.difference(b, i, j), s[b, i] - t[b, j])
    phi, (bend, inverse) = kernel.phi(tile.q) * v[:, None], bending(kernel, tile.q, v[:, None], along)
    du = torch.linalg.vecdot(phi, along)
    rest = [tuple(part[b, i, j, None] for part in (phi, bend, inverse)) for b, i, j in tile.near()]
    # The order of the last product matters to near pairs alone, whose curvature is large.
    phi, bend = tile.without_near(phi), tile.without_near(bend.mul_(inverse))
    df = phi.sum(-1, keepdim=True) * s - phi @ t + bend.sum(-1, keepdim=True) * x - bend @ y
    for (b, i, j), (slope, curve, shrink) in zip(tile.near(), rest, strict=True):
        add(df, b, i, slope * (s[b, i] - t[b, j]) + curve * (shrink * tile.difference(b, i, j)))
    return du, df
