"""Potential, field and their derivatives in high dimension, through matrix products of tiles, as flash attention does.

A program owns BLOCK_M targets of one cloud and BLOCK_F components of their field. For each tile of sources

    S = x y^T,    q = |x|^2 + |y|^2 - 2 S,    W = v phi(q),    f += (W 1) x - W y,

of clouds centred first. Where q is small against |x|^2 + |y|^2 it has lost its digits, and so has the difference of
the last two terms. A tile with such a pair is left out and noted down; the direct sums add it afterwards.
"""

import torch
import triton
import triton.language as tl

from ddeq_fast.kernels import radial
from ddeq_fast.kernels.direct import add_left_out
from ddeq_fast.kernels.launch import high_d_block, joined, outputs, split
from ddeq_fast.kernels.sources import last_charge, tile_range

# Pairs with q up to this part of |x|^2 + |y|^2 are near: at it, rounding costs six bits of q.
NEAR = tl.constexpr(1 / 64)
# Flags of tiles, a byte each, at once; where there are more, some targets after others are a launch of their own.
FLAGS = 1 << 26


@triton.jit
def _load(points, row, count, column, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS) of a cloud (count, D) from (row, column) on, zero outside."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = column + tl.arange(0, COLUMNS)[None, :]
    start = points + row.to(tl.int64) * D
    return tl.load(start + rows * D + columns, mask=(rows < count - row) & (columns < D), other=0.0).to(tl.float32)


@triton.jit
def _vector(numbers, row, count, ROWS: tl.constexpr):
    """ROWS of `count` numbers from `row` on, zero outside."""
    rows = row + tl.arange(0, ROWS)
    return tl.load(numbers + rows, mask=rows < count, other=0.0).to(tl.float32)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """The matrix product of float32 tiles, (M, K) by (K, N), summed in float32; PRECISION is that of its factors."""
    if PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _products(
    a,
    b,
    row,
    column,
    m,
    n,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) inner products of cloud a (m, D) from point `row` on with cloud b (n, D) from `column` on."""
    found = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, D, BLOCK_D):
        at_b = tl.trans(_load(b, column, n, k, D, BLOCK_N, BLOCK_D))  # (BLOCK_D, BLOCK_N)
        found += _dot(_load(a, row, m, k, D, BLOCK_M, BLOCK_D), at_b, PRECISION)
    return found


@triton.jit
def _distances(q, scale, charges, i, j, SAME: tl.constexpr):
    """(q kept from zero and below, which pairs are a point with itself, whether the tile is to be left out).

    q and scale = |x|^2 + |y|^2 are tiles (BLOCK_M, BLOCK_N) with the targets i (BLOCK_M,) and the sources j (BLOCK_N,);
    charges (1, BLOCK_N). Only with SAME, of a cloud on itself, is a pair with i = j known to coincide.
    """
    near = (q <= scale * NEAR) & (charges != 0)
    itself = i[:, None] == j[None, :]
    if SAME:
        near = near & (itself == 0)
        q = tl.where(itself, 0.0, q)
    return tl.maximum(q, radial.guard(tl.float32)), itself, tl.max(near.to(tl.int32)) > 0


@triton.jit
def _place(batch, m, n, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """What this program works on: (cloud, first row, part of the field, group, share, first flag of its row of tiles).

    Parts come first, so that neighbours read the same points, then blocks of targets, then groups: group g is cloud
    g % batch and share g // batch of its sources.
    """
    blocks = tl.cdiv(m, BLOCK_M)
    block = tl.program_id(0) // PARTS % blocks
    group = tl.program_id(0) // PARTS // blocks
    cloud = (group % batch).to(tl.int64)
    row_of_tiles = (cloud * blocks + block) * tl.cdiv(n, BLOCK_N)
    return cloud, block * BLOCK_M, tl.program_id(0) % PARTS, group.to(tl.int64), group // batch, row_of_tiles


@triton.jit
def _store_field(f, value, row, m, column, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr):
    """Write value (BLOCK_M, BLOCK_F) to f (m, D) from (row, column) on, but for what lies outside."""
    rows = tl.arange(0, BLOCK_M)[:, None]
    columns = column + tl.arange(0, BLOCK_F)[None, :]
    tl.store(f + row.to(tl.int64) * D + rows * D + columns, value, mask=(rows < m - row) & (columns < D))


@triton.jit(do_not_specialize=["batch", "m", "n", "splits"])
def _sums(
    points,
    products,
    v,
    last,
    u,
    f,
    left_out,
    parameters,
    batch,
    m,
    n,
    splits,
    CODES: tl.constexpr,
    D: tl.constexpr,
    TANGENT: tl.constexpr,
    SAME: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Potential and BLOCK_F components of the field at BLOCK_M targets a program; with TANGENT their derivatives.

    Which program takes what is told by `_place`. The potential is written by programs of the first part.

    Pointers: points, a tuple of targets and sources x (B, m, D) and y (B, n, D), or with TANGENT of these and their
    directions, (x, s, y, t); products, their inner products with x or y itself, in the same order, (B, m) and (B, n);
    charges v (B, n); last (B,), how many sources to read. Written are u (splits, B, m) and f (splits, B, m, D), each
    unless None, and left_out (B, tiles of targets, tiles of sources): which tiles these sums lack.

    CODES and parameters are the kernel, see `kernels.radial`. SAME: x and y are one cloud. PRECISION is that of the
    factors of matrix products. BLOCK_D coordinates are multiplied at a time. All sums are in float32.
    """
    PARTS: tl.constexpr = 1 if f is None else (D + BLOCK_F - 1) // BLOCK_F
    Y: tl.constexpr = 2 if TANGENT else 1  # where sources stand in `points`
    cloud, row, part, group, share, row_of_tiles = _place(batch, m, n, PARTS, BLOCK_M, BLOCK_N)
    x = points[0] + cloud * m * D
    y = points[Y] + cloud * n * D
    xx = _vector(products[0] + cloud * m, row, m, BLOCK_M)  # (BLOCK_M,)
    if TANGENT:
        s = points[1] + cloud * m * D
        t = points[3] + cloud * n * D
        xs = _vector(products[1] + cloud * m, row, m, BLOCK_M)  # (BLOCK_M,)
        s_weights = tl.zeros((BLOCK_M,), tl.float32)
    coefficients = radial.unpack(CODES, parameters, tl.float32)
    u_sum = tl.zeros((BLOCK_M,), tl.float32)
    x_weights = tl.zeros((BLOCK_M,), tl.float32)
    f_sum = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
    i = row + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    first, stop = tile_range(tl.load(last + cloud), share, splits, BLOCK_N)
    for tile in range(first, stop):
        column = tile * BLOCK_N
        j = column + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        charges = _vector(v + cloud * n, column, n, BLOCK_N)[None, :]  # (1, BLOCK_N)
        scale = xx[:, None] + _vector(products[Y] + cloud * n, column, n, BLOCK_N)[None, :]  # (BLOCK_M, BLOCK_N)
        if TANGENT:
            along = xs[:, None] + _vector(products[3] + cloud * n, column, n, BLOCK_N)[None, :]  # (BLOCK_M, BLOCK_N)
        xy = _products(x, y, row, column, m, n, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D)  # (BLOCK_M, BLOCK_N)
        if TANGENT:
            along -= _products(x, t, row, column, m, n, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D)
            along -= _products(s, y, row, column, m, n, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D)
        q, itself, leave = _distances(scale - 2 * xy, scale, charges, i, j, SAME)
        tl.store(left_out + row_of_tiles + tile, leave)
        if TANGENT:
            if SAME:
                along = tl.where(itself, 0.0, along)
            vphi, bend, inverse = radial.charged_slopes(CODES, coefficients, q, along, tl.where(leave, 0.0, charges))
            bend *= inverse  # no near pairs are left, whose bend would overflow
            u_sum += tl.sum(vphi * along, 1)
            s_weights += tl.sum(vphi, 1)
            x_weights += tl.sum(bend, 1)
            f_sum += _dot(vphi, _load(t, column, n, part * BLOCK_F, D, BLOCK_N, BLOCK_F), PRECISION)
            f_sum += _dot(bend, _load(y, column, n, part * BLOCK_F, D, BLOCK_N, BLOCK_F), PRECISION)
        else:
            vk, vphi = radial.charged(CODES, coefficients, q, charges)
            if u is not None:
                u_sum += tl.sum(tl.where(leave, 0.0, vk), 1)
            if f is not None:
                vphi = tl.where((leave | itself) if SAME else leave, 0.0, vphi)
                x_weights += tl.sum(vphi, 1)
                f_sum += _dot(vphi, _load(y, column, n, part * BLOCK_F, D, BLOCK_N, BLOCK_F), PRECISION)

    factor_k, factor_phi = radial.outer_factors(CODES, coefficients)
    if TANGENT:
        factor_k = factor_phi
    if u is not None:
        tl.store(u + group * m + i, factor_k * u_sum, mask=i < tl.where(part == 0, m, 0))
    if f is not None:
        f_sum = x_weights[:, None] * _load(x, row, m, part * BLOCK_F, D, BLOCK_M, BLOCK_F) - f_sum
        if TANGENT:
            f_sum += s_weights[:, None] * _load(s, row, m, part * BLOCK_F, D, BLOCK_M, BLOCK_F)
        _store_field(f + group * m * D, factor_phi * f_sum, row, m, part * BLOCK_F, D, BLOCK_M, BLOCK_F)


def _centred(x, y, v):
    """Both clouds about the centre of |v| on y (any centre would do), in float32, and whether they are one cloud."""
    mass = v.abs().float()
    centre = mass[:, None] @ y.float() / mass.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)[:, None, None]
    same = x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()
    y = (y - centre).contiguous()
    return y if same else (x - centre).contiguous(), y, same


def _launch(sums, points, v, codes, parameters, potential, field, precision):
    """`sums`, "evaluate" of points (x, y) or "tangent" of (x, s, y, t), with charges v, in the dtype of x.

    Returns potential and field, or their derivatives, None for what is not wanted.
    """
    half = len(points) // 2
    x, y = points[0], points[half]
    batch, m, d = x.shape
    n = y.shape[1]
    block = high_d_block(sums, _sums, d, precision)
    tiles = triton.cdiv(m, block["BLOCK_M"]), triton.cdiv(n, block["BLOCK_N"])
    rows = max(1, FLAGS // (batch * tiles[1])) * block["BLOCK_M"]
    if rows < m:
        some = [[*(p[:, i : i + rows] for p in points[:half]), *points[half:]] for i in range(0, m, rows)]
        parts = [_launch(sums, part, v, codes, parameters, potential, field, precision) for part in some]
        return tuple(None if part[0] is None else torch.cat(part, 1) for part in zip(*parts, strict=True))
    programs = batch * tiles[0] * (triton.cdiv(d, block["BLOCK_F"]) if field else 1)
    splits = split(x, programs, tiles[1])
    left_out = torch.empty(batch, *tiles, dtype=torch.int8, device=x.device)
    last = last_charge(v)
    x, y, same = _centred(x, y, v)
    u, f = outputs(x, splits, potential, field)
    centred = (x, *(p.contiguous() for p in points[1:half]), y, *(p.contiguous() for p in points[half + 1 :]))
    _sums[(splits * programs,)](
        centred,
        tuple(((x if i < half else y) * p).sum(-1, dtype=torch.float32) for i, p in enumerate(centred)),
        v.contiguous(),
        last,
        u,
        f,
        left_out,
        parameters,
        batch,
        m,
        n,
        splits,
        CODES=codes,
        D=d,
        TANGENT=sums == "tangent",
        SAME=same,
        enable_fp_fusion=True,
        **block,
    )
    found = joined(x, u, f)
    add_left_out(points, v, last, found, (left_out, block["BLOCK_M"], block["BLOCK_N"]), codes, parameters)
    return tuple(None if part is None else part.to(points[0].dtype) for part in found)


def evaluate(x, y, v, codes, parameters, potential, field, precision="tf32x3"):
    """`Backend.evaluate` in float32; the kernel as in `kernels.radial`.

    `precision` is that of products: "tf32x3" (as good as float32), "tf32" or "bf16".
    """
    return _launch("evaluate", (x, y), v, codes, parameters, potential, field, precision)


def tangent(x, y, v, s, t, codes, parameters, precision="tf32x3"):
    """`Backend.tangent` in float32; `precision` as for `evaluate`."""
    return _launch("tangent", (x, s, y, t), v, codes, parameters, True, True, precision)
