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
def _row(points, index, stop, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Coordinates of point `index` of `points`, (1, BLOCK_D); zeros from `stop` on."""
    columns = tl.arange(0, BLOCK_D)[None, :]
    return tl.load(points + index * D + columns, mask=columns < tl.where(index < stop, D, 0), other=0.0)


@triton.jit
def _first_flag(cloud, rows, m, n, TILE_M: tl.constexpr, TILE_N: tl.constexpr):
    """Where the flags of `rows` begin among those of all (clouds, tiles of targets, tiles of sources)."""
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
def _sums(
    x,
    s,
    y,
    t,
    v,
    last,
    u,
    f,
    shares,
    left_out,
    parameters,
    m,
    n,
    CODES: tl.constexpr,
    D: tl.constexpr,
    SUMS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """Potential and field of charges v at y, at BLOCK_M targets x a program; or their derivatives.

    Program p takes block p % cdiv(m, BLOCK_M) of the targets of cloud p // cdiv(m, BLOCK_M).

    Pointers: targets x (B, m, D), sources y (B, n, D), charges v (B, n); s and t, like x and y, the directions in which
    these move, both None for the sums themselves. last (B,) tells where padding starts, None if nowhere. Written are
    u (B, m) and f (B, m, D), or their derivatives, each unless None, and shares, one number a program: its part of
    sum_ij v_i v_j k(x_i, x_j), of clouds on themselves. With left_out (B, tiles of TILE_M targets, tiles of TILE_N
    sources) only the tiles flagged there are summed, and added to u and f.

    CODES and parameters are the kernel, see `kernels.radial`. SUMS is the dtype of all arithmetic. UNROLL sources are
    dealt with in a round of the loop. BLOCK_D is D rounded up to a power of two.
    """
    blocks = tl.cdiv(m, BLOCK_M)
    cloud = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    columns = tl.arange(0, BLOCK_D)[None, :]  # (1, BLOCK_D)
    offsets = (cloud * m + rows[:, None]) * D + columns  # (BLOCK_M, BLOCK_D)
    inside = (rows < m)[:, None] & (columns < D)

    target = tl.load(x + offsets, mask=inside, other=0.0).to(SUMS)  # (BLOCK_M, BLOCK_D)
    if s is not None:
        target_move = tl.load(s + offsets, mask=inside, other=0.0).to(SUMS)
    coefficients = radial.unpack(CODES, parameters, SUMS)
    u_sum = tl.zeros((BLOCK_M,), SUMS)
    f_sum = tl.zeros((BLOCK_M, BLOCK_D), SUMS)
    start = cloud * n
    stop = start + (n if last is None else tl.load(last + cloud))
    flags = _first_flag(cloud, rows, m, n, TILE_M, TILE_N)
    for tile in range(1 if left_out is None else tl.cdiv(stop - start, TILE_N)):
        begin, end = _span(left_out, flags + tile, start + tile * TILE_N, stop, TILE_N)
        for first in range(begin, end, UNROLL):
            for k in tl.static_range(UNROLL):
                j = first + k
                charge = tl.load(v + j, mask=j < end, other=0.0).to(SUMS)
                d = target - _row(y, j, end, D, BLOCK_D).to(SUMS)  # (BLOCK_M, BLOCK_D)
                if s is None:
                    q = tl.sum(d * d, 1) + radial.guard(SUMS)  # (BLOCK_M,)
                    vk, vphi = radial.charged(CODES, coefficients, q, charge)
                    if u is not None:
                        u_sum += vk
                    if f is not None:
                        f_sum += vphi[:, None] * d
                else:
                    move = target_move - _row(t, j, end, D, BLOCK_D).to(SUMS)  # (BLOCK_M, BLOCK_D)
                    q = tl.sum(d * d, 1) + radial.guard(SUMS)  # (BLOCK_M,)
                    along = tl.sum(d * move, 1)  # (BLOCK_M,)
                    vphi, bend, inverse = radial.charged_slopes(CODES, coefficients, q, along, charge)
                    u_sum += vphi * along
                    f_sum += vphi[:, None] * move + bend[:, None] * (d * inverse[:, None])

    factor_k, factor_phi = radial.outer_factors(CODES, coefficients)
    if s is not None:
        factor_k = factor_phi
    if shares is not None:
        charge = tl.load(v + cloud * m + rows, mask=rows < m, other=0.0).to(SUMS)  # (BLOCK_M,)
        tl.store(shares + tl.program_id(0), factor_k * tl.sum(charge * u_sum))
    if u is not None:
        _store(u + cloud * m + rows, factor_k * u_sum, rows < m, left_out)
    if f is not None:
        _store(f + offsets, factor_phi * f_sum, inside, left_out)


def _launch(points, v, last, sums, left_out, codes, parameters, block=None):
    """Sum over charges v and write `sums` (u, f, shares), or add to them.

    points: (x, y), or (x, s, y, t) for derivatives.
    """
    x, s, y, t = (points[0], None, points[1], None) if len(points) == 2 else points
    batch, m, d = x.shape
    block_m, warps = block or direct_block(_sums, d * (len(points) // 2), sum_dtype(x))
    flags, tile_m, tile_n = left_out or (None, 1, 1)
    _sums[(batch * triton.cdiv(m, block_m),)](
        *(None if p is None else p.contiguous() for p in (x, s, y, t, v)),
        last,
        *sums,
        flags,
        parameters,
        m,
        v.shape[1],
        CODES=codes,
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


def evaluate(x, y, v, codes, parameters, potential, field):
    """`Backend.evaluate`; the kernel as in `kernels.radial`."""
    sums = outputs(x, 1, potential, field)
    _launch((x, y), v, _last(v), (*sums, None), None, codes, parameters)
    return joined(x, *sums)


def energy(z, w, codes, parameters, field):
    """(sum_ij w_i w_j k(z_i, z_j), (B,), potential, field) of clouds z with charges w on themselves, in one launch."""
    batch, m, d = z.shape
    block = whole_cloud_block(_sums, d, m, sum_dtype(z))
    sums = outputs(z, 1, True, field)
    shares = torch.empty(batch, triton.cdiv(m, block[0]), dtype=sum_dtype(w), device=w.device)
    _launch((z, z), w, _last(w), (*sums, shares), None, codes, parameters, block)
    value = shares[:, 0] if shares.shape[1] == 1 else shares.sum(1)
    return value.to(w.dtype), *joined(z, *sums)


def tangent(x, y, v, s, t, codes, parameters):
    """`Backend.tangent`."""
    sums = outputs(x, 1, True, True)
    _launch((x, s, y, t), v, _last(v), (*sums, None), None, codes, parameters)
    return joined(x, *sums)


def add_left_out(points, v, last, sums, left_out, codes, parameters):
    """Add to `sums`, (B, m) and (B, m, d) in float32, the pairs in tiles that were left out.

    Args:
        points: (x, y), or (x, s, y, t) for derivatives.
        last: `last_charge(v)`.
        left_out: (flags (B, tiles of targets, tiles of sources), targets a tile, sources a tile).
    """
    _launch(points, v, last, (*sums, None), left_out, codes, parameters)
