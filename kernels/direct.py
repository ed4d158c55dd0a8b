"""Potential, field and their derivatives in any dimension, one source at a time: for few sources, and in float64.

A program holds all coordinates of BLOCK_M targets in registers and walks through the sources of their cloud; a
squared distance is a sum along a row. Differences are formed outright, so that clouds may lie far from the origin and
points close to each other. Nothing is prepared by another launch: with few sources, launching is what takes time.

The same code adds to sums in high dimension the tiles that they left out, see `kernels.high_d`.
"""

import torch
import triton
import triton.language as tl

from ddeq_fast.kernels import radial
from ddeq_fast.kernels.launch import direct_block, joined, outputs, sum_dtype, whole_cloud_block
from ddeq_fast.kernels.sources import last_charge

FEW_SOURCES = 64


@triton.jit
def _place(m, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """(cloud, rows, offsets of their coordinates, which of these exist) of this program."""
    blocks = tl.cdiv(m, BLOCK_M)
    cloud = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)[None, :]
    offsets = (cloud * m + rows[:, None]) * D + columns
    return cloud, rows, offsets, (rows < m)[:, None] & (columns < D)


@triton.jit
def _row(points, index, stop, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Coordinates of point `index` of `points`, (1, BLOCK_D); zeros from `stop` on."""
    columns = tl.arange(0, BLOCK_D)[None, :]
    return tl.load(points + index * D + columns, mask=columns < tl.where(index < stop, D, 0), other=0.0)


@triton.jit
def _tiles(cloud, rows, m, n, TILE_M: tl.constexpr, TILE_N: tl.constexpr):
    """The first of the flags that concern `rows`, of all (clouds, tiles of targets, tiles of sources)."""
    return (cloud * tl.cdiv(m, TILE_M) + tl.min(rows) // TILE_M) * tl.cdiv(n, TILE_N)


@triton.jit
def _span(left_out, flag, begin, stop, TILE_N: tl.constexpr):
    """Where the sources to be summed begin and end: all up to `stop`, or a tile, which is empty if not flagged."""
    if left_out is None:
        return begin, stop
    else:
        return begin, tl.where(tl.load(left_out + flag) != 0, tl.minimum(begin + TILE_N, stop), begin)


@triton.jit
def _store(place, value, inside, left_out):
    """Write `value`, or add it if what had been left out was summed."""
    if left_out is not None:
        value += tl.load(place, mask=inside, other=0.0)
    tl.store(place, value, mask=inside)


@triton.jit(do_not_specialize=["m", "n"])
def _evaluate(
    x,
    y,
    v,
    last,
    u,
    f,
    shares,
    left_out,
    parameters,
    m,
    n,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    SUMS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
):
    cloud, rows, offsets, inside = _place(m, D, BLOCK_M, BLOCK_D)
    target = tl.load(x + offsets, mask=inside, other=0.0).to(SUMS)
    coefficients = radial.unpack(KINDS, parameters, SUMS)
    u_sum = tl.zeros((BLOCK_M,), SUMS)
    f_sum = tl.zeros((BLOCK_M, BLOCK_D), SUMS)
    start = cloud * n
    stop = start + (n if last is None else tl.load(last + cloud))
    flags = _tiles(cloud, rows, m, n, TILE_M, TILE_N)
    for tile in range(1 if left_out is None else tl.cdiv(stop - start, TILE_N)):
        begin, end = _span(left_out, flags + tile, start + tile * TILE_N, stop, TILE_N)
        for first in range(begin, end, UNROLL):
            for k in tl.static_range(UNROLL):
                j = first + k
                charge = tl.load(v + j, mask=j < end, other=0.0).to(SUMS)
                d = target - _row(y, j, end, D, BLOCK_D).to(SUMS)
                q = tl.sum(d * d, 1) + radial.guard(SUMS)
                vk, vphi = radial.charged(KINDS, coefficients, q, charge)
                if u is not None:
                    u_sum += vk
                if f is not None:
                    f_sum += vphi[:, None] * d

    factor_k, factor_phi = radial.outer_factors(KINDS, coefficients)
    if shares is not None:
        charge = tl.load(v + cloud * m + rows, mask=rows < m, other=0.0).to(SUMS)
        tl.store(shares + tl.program_id(0), factor_k * tl.sum(charge * u_sum))
    if u is not None:
        _store(u + cloud * m + rows, factor_k * u_sum, rows < m, left_out)
    if f is not None:
        _store(f + offsets, factor_phi * f_sum, inside, left_out)


@triton.jit(do_not_specialize=["m", "n"])
def _tangent(
    x,
    s,
    y,
    t,
    v,
    last,
    du,
    df,
    left_out,
    parameters,
    m,
    n,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    SUMS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
):
    cloud, rows, offsets, inside = _place(m, D, BLOCK_M, BLOCK_D)
    target = tl.load(x + offsets, mask=inside, other=0.0).to(SUMS)
    target_move = tl.load(s + offsets, mask=inside, other=0.0).to(SUMS)
    coefficients = radial.unpack(KINDS, parameters, SUMS)
    du_sum = tl.zeros((BLOCK_M,), SUMS)
    df_sum = tl.zeros((BLOCK_M, BLOCK_D), SUMS)
    start = cloud * n
    stop = start + (n if last is None else tl.load(last + cloud))
    flags = _tiles(cloud, rows, m, n, TILE_M, TILE_N)
    for tile in range(1 if left_out is None else tl.cdiv(stop - start, TILE_N)):
        begin, end = _span(left_out, flags + tile, start + tile * TILE_N, stop, TILE_N)
        for first in range(begin, end, UNROLL):
            for k in tl.static_range(UNROLL):
                j = first + k
                charge = tl.load(v + j, mask=j < end, other=0.0).to(SUMS)
                d = target - _row(y, j, end, D, BLOCK_D).to(SUMS)
                move = target_move - _row(t, j, end, D, BLOCK_D).to(SUMS)
                q = tl.sum(d * d, 1) + radial.guard(SUMS)
                along = tl.sum(d * move, 1)
                vphi, bend, inverse = radial.charged_slopes(KINDS, coefficients, q, along, charge)
                du_sum += vphi * along
                df_sum += vphi[:, None] * move + bend[:, None] * (d * inverse[:, None])

    _, factor = radial.outer_factors(KINDS, coefficients)
    _store(du + cloud * m + rows, factor * du_sum, rows < m, left_out)
    _store(df + offsets, factor * df_sum, inside, left_out)


def _launch(kernel, points, v, last, sums, left_out, kinds, parameters, block=None):
    """Run `kernel` on points (targets before sources) and charges v, writing `sums` or adding to them."""
    x, n = points[0], v.shape[1]
    batch, m, d = x.shape
    block_m, warps = block or direct_block(kernel, d * (len(points) // 2), sum_dtype(x))
    flags, tile_m, tile_n = left_out or (None, 1, 1)
    kernel[(batch * triton.cdiv(m, block_m),)](
        *(p.contiguous() for p in points),
        v.contiguous(),
        last,
        *sums,
        flags,
        parameters,
        m,
        n,
        KINDS=kinds,
        D=d,
        SUMS=tl.float64 if sum_dtype(x) == torch.float64 else tl.float32,
        UNROLL=1 if left_out else 4,
        BLOCK_M=block_m,
        BLOCK_D=triton.next_power_of_2(d),
        TILE_M=tile_m,
        TILE_N=tile_n,
        num_warps=warps,
        enable_fp_fusion=True,
    )


def _last(v):
    """Where padding starts, if finding it is worth a launch."""
    return last_charge(v) if v.shape[1] > FEW_SOURCES else None


def evaluate(x, y, v, kinds, parameters, potential, field):
    """`Backend.evaluate`; the kernel as in `kernels.radial`."""
    sums = outputs(x, 1, potential, field)
    _launch(_evaluate, (x, y), v, _last(v), (*sums, None), None, kinds, parameters)
    return joined(x, *sums)


def energy(z, w, kinds, parameters, field):
    """(sum_ij w_i w_j k(z_i, z_j), (B,), potential, field) of clouds z with charges w on themselves, in one launch."""
    batch, m, d = z.shape
    block = whole_cloud_block(_evaluate, d, m, sum_dtype(z))
    sums = outputs(z, 1, True, field)
    shares = torch.empty(batch, triton.cdiv(m, block[0]), dtype=sum_dtype(w), device=w.device)
    _launch(_evaluate, (z, z), w, _last(w), (*sums, shares), None, kinds, parameters, block)
    value = shares[:, 0] if shares.shape[1] == 1 else shares.sum(1)
    return value.to(w.dtype), *joined(z, *sums)


def tangent(x, y, v, s, t, kinds, parameters):
    """`Backend.tangent`."""
    sums = outputs(x, 1, True, True)
    _launch(_tangent, (x, s, y, t), v, _last(v), sums, None, kinds, parameters)
    return joined(x, *sums)


def add_left_out(points, v, last, sums, left_out, kinds, parameters):
    """Add to `sums`, (B, m) and (B, m, d) in float32, the pairs in tiles that were left out.

    Args:
        points: (x, y), or (x, s, y, t) for derivatives.
        last: `last_charge(v)`.
        left_out: (flags (B, tiles of targets, tiles of sources), targets a tile, sources a tile).
    """
    if len(points) == 2:
        _launch(_evaluate, points, v, last, (*sums, None), left_out, kinds, parameters)
    else:
        _launch(_tangent, points, v, last, sums, left_out, kinds, parameters)
