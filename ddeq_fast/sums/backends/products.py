"""Sums of the compiled backend above 8 dimensions: matrix products of tiles, and one fused pass between them.

As in the dense backend, of clouds centred first,

    S = x y^T,    q = |x|^2 + |y|^2 - 2 S,    w = v phi(q),    u = sum_j v k(q),    f = (sum_j w) x - w y.

All from S to w and the sums over j is one program for each kind of kernel, whatever the dimension: a tile of S is read
once and one of w is written once. Of a cloud on itself, in several tiles, half of them are enough: k and phi are
symmetric, and are written without charges. Pairs of which q has lost its digits, `near` ones, are left out, and their
number is told; where there are some they are found and summed from the differences of the points as they were given.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddeq_fast.sums.backends import dense
from ddeq_fast.sums.backends.memory import Sums, Tiles, even, memory_budget, out_of_memory
from ddeq_fast.sums.backends.programs import Program, lowered, mixed, run
from ddeq_fast.sums.radial import RadialKernel

# Bytes of a tile's matrix: its three calls take far longer than to call, and memory for it is soon found again.
TILE = 8 << 20
# Matrices alive at once where near pairs are looked for, which are squared distances, sizes and flags beside the two.
MATRICES = 6
TANGENT_MATRICES = 8


class _NotCompiled(Exception):
    """There is no compiler."""


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool) -> Sums | None:
    """See `Backend.evaluate`; None without a compiler."""
    itself = x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()
    targets, sources = _prepared(x, y, v, v.abs())
    found = None
    # Points without a charge are where they are as targets, and anywhere as sources.
    several = x.shape[1] ** 2 > _pairs(x.element_size())
    if itself and several and bool((v != 0).all()):
        found = _of_itself(kernel, sources, potential, field)
    if found is None:
        tile = _Tile(_sums, kernel, v, (potential, field), products=1, outputs=int(field))
        found = _in_tiles(functools.partial(_evaluate, tile, itself), targets, sources, MATRICES)
    if found is None or found[0] is None or not itself:
        return found
    return found[0] + v * kernel.k(x.new_zeros(())), found[1]


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel) -> Sums | None:
    """See `Backend.tangent`; None without a compiler."""
    tile = _Tile(_slopes, kernel, v, (True, True), products=2, outputs=2)
    mass = v.abs() * (t.norm(dim=-1) + s.norm(dim=(-2, -1))[:, None])
    targets, sources = _prepared(x, y, v, mass)
    (_, given_x, x, size_x), (_, given_y, y, size_y, v) = targets, sources
    along_x, along_y = torch.linalg.vecdot(x, s), torch.linalg.vecdot(y, t)
    # <x_i - y_j, s_i - t_j> is the sum of two numbers less one product of twice the length.
    targets = [given_x, x, size_x, s, along_x, torch.cat((s, x), -1)]
    sources = [given_y, y, size_y, v, t, along_y, torch.cat((y, t), -1)]
    return _in_tiles(functools.partial(_tangent, tile), targets, sources, TANGENT_MATRICES)


def _prepared(x: Tensor, y: Tensor, v: Tensor, mass: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Targets and sources: places in their cloud, points as given, centred points, their squares; and charges."""
    centred = dense.centred(x, y, mass)
    targets, sources = (
        [torch.arange(points.shape[1]).expand(points.shape[:2]), points, moved, torch.linalg.vecdot(moved, moved)]
        for points, moved in zip((x, y), centred, strict=True)
    )
    return targets, [*sources, v]


def call_bytes(shape: tuple[int, int, int, int], itemsize: int) -> int:
    """Memory of one call of shape (B, m, n, d), potential and field, beyond its inputs and results."""
    batch, m, n, d = shape
    pairs = min(batch * m * n, _pairs(itemsize))
    return itemsize * (MATRICES * pairs + 2 * batch * (m + n) * d)


def _pairs(itemsize: int, matrices: int = MATRICES) -> int:
    return max(1, min(TILE, memory_budget() // matrices) // itemsize)


def _in_tiles(sums, targets: Sequence[Tensor], sources: Sequence[Tensor], matrices: int) -> Sums | None:
    tiles = Tiles(sums, _pairs(targets[-1].element_size(), matrices))
    try:
        return tiles.run(targets, sources)
    except _NotCompiled:
        return None


class _Tile:
    """The fused pass with its matrices, whose memory serves all tiles of one call."""

    def __init__(self, formula, kernel: RadialKernel, like: Tensor, wanted: tuple[bool, bool], products, outputs):
        self.formula, self.kernel, self.wanted = formula, kernel, wanted
        self.kinds, self.numbers = lowered(kernel, like)
        self.memory = [like.new_empty(0) for _ in range(products + outputs)]
        self.products = products

    def matrices(self, shape: torch.Size) -> list[Tensor]:
        """Matrices (B, m, n): one for each matrix product, and those that the pass writes."""
        if self.memory[0].numel() < shape.numel():
            self.memory = [part.new_empty(shape.numel()) for part in self.memory]
        # No views, for which programs are compiled anew.
        strides = (shape[1] * shape[2], shape[2], 1)
        return [part.new_empty(0).set_(part.untyped_storage(), 0, shape, strides) for part in self.memory]

    def __call__(self, matrices: list[Tensor], *vectors: Tensor) -> list[Tensor]:
        """What the formula sums over j, each (B, m), the last of them near pairs."""
        batch, m, n = matrices[0].shape
        ones = batch == 1, m == 1, n == 1
        program = Program(self.formula, 0, self.kinds, self.wanted, self.numbers.dtype, ones)
        found = run(program, matrices, [vector.clone() for vector in vectors], self.numbers)
        if found is None:
            raise _NotCompiled
        return found


def _evaluate(tile: _Tile, itself: bool, targets, sources) -> Sums:
    (place_x, given_x, x, size_x), (place_y, given_y, y, size_y, v) = targets, sources
    products, *weights = matrices = tile.matrices(torch.Size((*size_x.shape, y.shape[1])))
    torch.bmm(x, y.mT, out=products)
    first = int(place_x[0, 0] - place_y[0, 0]) if itself else y.shape[1]  # an empty diagonal
    known = products.diagonal(first, 1, 2).fill_(torch.inf)  # left out as near: a point and itself exert no force
    *found, number = tile(matrices, size_x, size_y, v)
    u = found.pop(0) if tile.wanted[0] else None
    f = torch.baddbmm(found[0][..., None] * x, weights[0], y, alpha=-1) if weights else None
    if number.sum() > known.numel():
        for pairs in _near(products, size_x, size_y, v, first, x.shape[2]):
            _add_near(tile.kernel, pairs, given_x, given_y, v, u, f)
    return u, f


def _add_near(kernel: RadialKernel, pairs, x: Tensor, y: Tensor, v: Tensor, u: Tensor | None, f: Tensor | None) -> None:
    """Add to u and f, where they are wanted, what pairs (cloud, target, source) of given points come to."""
    b, i, j = pairs
    d, charge = x[b, i] - y[b, j], v[b, j]
    q = torch.linalg.vecdot(d, d)
    if u is not None:
        dense.add(u, b, i, charge * kernel.k(q))
    if f is not None:
        dense.add(f, b, i, (charge * kernel.phi(q))[:, None] * d)


def _of_itself(kernel: RadialKernel, sources: Sequence[Tensor], potential: bool, field: bool) -> Sums | None:
    """Sums of a cloud on itself, without those of points with themselves: a tile of pairs serves both of its sides.

    None without a compiler, or where tiles of this size do not fit into memory.
    """
    _, given, x, size, v = sources
    batch, n = v.shape
    tile = _Tile(_values, kernel, v, (potential, field), products=1, outputs=int(potential) + int(field))
    edge = even(n, math.isqrt(_pairs(x.element_size())))
    points = given, x, size, v, v[..., None] * x
    # Potentials, sums of phi v and of phi v x, and forces of near pairs.
    sums = torch.zeros_like(v), torch.zeros_like(v), torch.zeros_like(x), torch.zeros_like(x)
    try:
        for b in range(batch):
            for i in range(0, n, edge):
                for j in range(i, n, edge):
                    _both_ways(tile, b, slice(i, i + edge), slice(j, j + edge), points, sums)
    except _NotCompiled:
        return None
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None
    u, masses, moments, near = sums
    return (u if potential else None), (near.addcmul_(masses[..., None], x).sub_(moments) if field else None)


def _both_ways(tile: _Tile, b: int, i: slice, j: slice, points: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
    """Add to `sums`, of `_of_itself`, what two blocks of cloud b do to each other, or one does to itself."""
    given, x, size, v, charged = points
    u, masses, moments, forces = sums
    one, apart = slice(b, b + 1), i.start < j.start
    products, *filled = matrices = tile.matrices(torch.Size((1, len(v[b, i]), len(v[b, j]))))
    torch.bmm(x[one, i], x[one, j].mT, out=products)
    known = 0 if apart else products.diagonal(0, 1, 2).fill_(torch.inf).numel()
    *rows, number = tile(matrices, size[one, i], size[one, j], v[one, j])
    wanted = [total for total, asked in zip((u, masses), tile.wanted, strict=True) if asked]
    for total, row, matrix in zip(wanted, rows, filled, strict=True):
        total[one, i] += row
        if apart:
            total[one, j] += (v[one, None, i] @ matrix)[:, 0]
    if tile.wanted[1]:
        moments[one, i].baddbmm_(filled[-1], charged[one, j])
        if apart:
            moments[one, j].baddbmm_(filled[-1].mT, charged[one, i])
    if number.sum() > known:
        first = 0 if known else products.shape[2]
        near_u, near_f = (total if asked else None for total, asked in zip((u, forces), tile.wanted, strict=True))
        for cloud, p, q in _near(products, size[one, i], size[one, j], torch.ones_like(v[one, j]), first, x.shape[2]):
            cloud, p, q = cloud + b, p + i.start, q + j.start
            for to, source in [(p, q), (q, p)] if apart else [(p, q)]:
                _add_near(tile.kernel, (cloud, to, source), given, given, v, near_u, near_f)


def _tangent(tile: _Tile, targets, sources) -> Sums:
    given_x, x, size_x, s, along_x, both_x = targets
    given_y, y, size_y, v, t, along_y, both_y = sources
    products, moves, slope, bend = matrices = tile.matrices(torch.Size((*size_x.shape, y.shape[1])))
    torch.bmm(x, y.mT, out=products)
    torch.bmm(both_x, both_y.mT, out=moves)
    du, slopes, bends, number = tile(matrices, size_x, size_y, v, along_x, along_y)
    df = torch.baddbmm(slopes[..., None] * s, slope, t, alpha=-1)
    df = df.add_(torch.baddbmm(bends[..., None] * x, bend, y, alpha=-1))
    if number.any():
        for b, i, j in _near(products, size_x, size_y, v, y.shape[1], x.shape[2]):
            d, move, charge = given_x[b, i] - given_y[b, j], s[b, i] - t[b, j], v[b, j]
            q, along = torch.linalg.vecdot(d, d), torch.linalg.vecdot(d, move)
            phi, (curve, inverse) = charge * tile.kernel.phi(q), dense.bending(tile.kernel, q, charge, along)
            dense.add(du, b, i, phi * along)
            dense.add(df, b, i, phi[:, None] * move + curve[:, None] * (inverse[:, None] * d))
    return du, df


def _near(products: Tensor, size_x: Tensor, size_y: Tensor, v: Tensor, first: int, d: int):
    """Indices (cloud, target, source) of near pairs with a charge, but for the diagonal from `first` on, in parts.

    The arithmetic is that of `_distances`, and so are its roundings: all but the two sums is exact.
    """
    size = size_x[:, :, None] + size_y[:, None]
    near = size.sub(products, alpha=2) <= size * dense.NEAR
    near &= (v != 0)[:, None]
    near.diagonal(first, 1, 2).fill_(False)
    return dense.parts(near.nonzero(), d)


def _distances(products, size_x, size_y, v):
    """(q, zero for near pairs, charges (B, m, n), zero for them too, how many near pairs a target has (B, m))."""
    size = size_x[:, :, None] + size_y[:, None]
    q = size - 2 * products
    near = q <= size * dense.NEAR
    return torch.where(near, 0, q), torch.where(near, 0, v[:, None]), near.to(q.dtype).sum(-1)


def _sums(kinds, wanted, matrices, vectors, numbers):
    """[u, sum_j w, near pairs], what is wanted of it, each (B, m); w goes into the second matrix (B, m, n)."""
    products, *weights = matrices
    size_x, size_y, v = vectors
    q, charges, number = _distances(products, size_x, size_y, v)
    found = [number]
    if wanted[1]:
        w = mixed(kinds, numbers, q, "phi") * charges
        weights[0].copy_(w)
        found.insert(0, w.sum(-1))
    if wanted[0]:
        found.insert(0, (mixed(kinds, numbers, q, "k") * charges).sum(-1))
    return found


def _values(kinds, wanted, matrices, vectors, numbers):
    """[u, sum_j phi v, near pairs], what is wanted of it, each (B, m); k and phi go into the last matrices, zero for
    near pairs."""
    products, *filled = matrices
    size_x, size_y, v = vectors
    q, ones, number = _distances(products, size_x, size_y, torch.ones_like(v))
    asked = [order for order, want in zip(("k", "phi"), wanted, strict=True) if want]
    found = []
    for order, matrix in zip(asked, filled, strict=True):
        values = mixed(kinds, numbers, q, order) * ones
        matrix.copy_(values)
        found.append((values * v[:, None]).sum(-1))
    return [*found, number]


def _slopes(kinds, wanted, matrices, vectors, numbers):
    """[du, and of v phi and v c <d, s - t> / q their sums over j, near pairs], each (B, m).

    The two go into the last matrices, (B, m, n) each. The order of the last product matters to near pairs alone, whose
    curvature is large.
    """
    products, moves, *weights = matrices
    size_x, size_y, v, along_x, along_y = vectors
    q, charges, number = _distances(products, size_x, size_y, v)
    along = along_x[:, :, None] + along_y[:, None] - moves
    inverse = torch.where(q > 0, q, torch.ones_like(q)).rsqrt()
    slope = mixed(kinds, numbers, q, "phi") * charges
    bend = mixed(kinds, numbers, q, "curvature") * charges * (along * inverse) * inverse
    weights[0].copy_(slope)
    weights[1].copy_(bend)
    return [(slope * along).sum(-1), slope.sum(-1), bend.sum(-1), number]
