"""Potential, field and their derivatives in low dimension: one pair at a time in registers, coordinates unrolled.

A program owns BLOCK_M targets of one cloud and walks through the sources, BLOCK_N at a time. Every sum is a whole
(BLOCK_M, BLOCK_N) tile, reduced once, after the loop: inside it are neither shuffles nor barriers.
"""

import triton
import triton.language as tl

from ddeq_fast.kernels import radial
from ddeq_fast.kernels.launch import joined, low_d_block, outputs, split, sum_dtype
from ddeq_fast.kernels.sources import last_charge, pack, tile_range

MAX_DIMENSION = 8


@triton.jit
def _load_rows(points, first, rows, m, D: tl.constexpr, dtype: tl.constexpr):
    """The D coordinates of `rows` of a cloud (m, D) that starts at point `first`, each (BLOCK_M, 1)."""
    found = ()
    for k in tl.static_range(D):
        value = tl.load(points + (first + rows) * D + k, mask=rows < m, other=0.0)
        found += (value.to(dtype)[:, None],)
    return found


@triton.jit
def _load_columns(tile, FIRST: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr):
    """D rows of a tile of packed sources from row FIRST, each (1, BLOCK_N)."""
    found = ()
    for k in tl.static_range(FIRST, FIRST + D):
        found += (tl.load(tile + k * BLOCK_N + tl.arange(0, BLOCK_N))[None, :],)
    return found


@triton.jit(do_not_specialize=["batch", "m", "tiles", "splits"])
def _evaluate(
    targets,
    sources,
    last,
    u,
    f,
    parameters,
    batch,
    m,
    tiles,
    splits,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    dtype = sources.dtype.element_ty
    group = tl.program_id(0) // tl.cdiv(m, BLOCK_M)
    rows = (tl.program_id(0) % tl.cdiv(m, BLOCK_M)) * BLOCK_M + tl.arange(0, BLOCK_M)
    cloud = (group % batch).to(tl.int64)
    coefficients = radial.unpack(KINDS, parameters, dtype)
    x = _load_rows(targets[0], cloud * m, rows, m, D, dtype)

    u_sum = tl.zeros((BLOCK_M, BLOCK_N), dtype)
    f_sum = ()
    for _ in tl.static_range(D):
        f_sum += (tl.zeros((BLOCK_M, BLOCK_N), dtype),)
    first, stop = tile_range(tl.load(last + cloud), group // batch, splits, BLOCK_N)
    tile = sources + (cloud * tiles + first) * ((D + 1) * BLOCK_N)
    for _ in range(first, stop):
        y = _load_columns(tile, 0, D, BLOCK_N)
        (v,) = _load_columns(tile, D, 1, BLOCK_N)
        tile += (D + 1) * BLOCK_N
        q = tl.full((BLOCK_M, BLOCK_N), radial.guard(dtype), dtype)
        d = ()
        for k in tl.static_range(D):
            d += (x[k] - y[k],)
            q += d[k] * d[k]
        vk, vphi = radial.charged(KINDS, coefficients, q, v)
        if u is not None:
            u_sum += vk
        if f is not None:
            total = ()
            for k in tl.static_range(D):
                total += (f_sum[k] + vphi * d[k],)
            f_sum = total

    factor_k, factor_phi = radial.outer_factors(KINDS, coefficients)
    out = group.to(tl.int64) * m + rows
    if u is not None:
        tl.store(u + out, factor_k * tl.sum(u_sum, 1), mask=rows < m)
    if f is not None:
        for k in tl.static_range(D):
            tl.store(f + out * D + k, factor_phi * tl.sum(f_sum[k], 1), mask=rows < m)


@triton.jit(do_not_specialize=["batch", "m", "tiles", "splits"])
def _tangent(
    targets,
    sources,
    last,
    du,
    df,
    parameters,
    batch,
    m,
    tiles,
    splits,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    dtype = sources.dtype.element_ty
    group = tl.program_id(0) // tl.cdiv(m, BLOCK_M)
    rows = (tl.program_id(0) % tl.cdiv(m, BLOCK_M)) * BLOCK_M + tl.arange(0, BLOCK_M)
    cloud = (group % batch).to(tl.int64)
    coefficients = radial.unpack(KINDS, parameters, dtype)
    x = _load_rows(targets[0], cloud * m, rows, m, D, dtype)
    s = _load_rows(targets[1], cloud * m, rows, m, D, dtype)

    du_sum = tl.zeros((BLOCK_M, BLOCK_N), dtype)
    df_sum = ()
    for _ in tl.static_range(D):
        df_sum += (tl.zeros((BLOCK_M, BLOCK_N), dtype),)
    first, stop = tile_range(tl.load(last + cloud), group // batch, splits, BLOCK_N)
    tile = sources + (cloud * tiles + first) * ((2 * D + 1) * BLOCK_N)
    for _ in range(first, stop):
        y = _load_columns(tile, 0, D, BLOCK_N)
        t = _load_columns(tile, D, D, BLOCK_N)
        (v,) = _load_columns(tile, 2 * D, 1, BLOCK_N)
        tile += (2 * D + 1) * BLOCK_N
        q = tl.full((BLOCK_M, BLOCK_N), radial.guard(dtype), dtype)
        along = tl.zeros((BLOCK_M, BLOCK_N), dtype)
        d = ()
        move = ()
        for k in tl.static_range(D):
            d += (x[k] - y[k],)
            move += (s[k] - t[k],)
            q += d[k] * d[k]
            along += d[k] * move[k]
        vphi, bend, inverse = radial.charged_slopes(KINDS, coefficients, q, along, v)
        du_sum += vphi * along
        total = ()
        for k in tl.static_range(D):
            total += (df_sum[k] + vphi * move[k] + bend * (d[k] * inverse),)
        df_sum = total

    _, factor = radial.outer_factors(KINDS, coefficients)
    out = group.to(tl.int64) * m + rows
    tl.store(du + out, factor * tl.sum(du_sum, 1), mask=rows < m)
    for k in tl.static_range(D):
        tl.store(df + out * D + k, factor * tl.sum(df_sum[k], 1), mask=rows < m)


def _launch(sums, kernel, targets, sources, v, kinds, parameters, potential, field):
    """Run `kernel` on targets, each (B, m, d), and sources, each (B, n, d), with charges v (B, n).

    `sums` names its block sizes. Returns the sums of shape (B, m) and (B, m, d), None for what is not wanted.
    """
    x = targets[0]
    batch, m, d = x.shape
    dtype = sum_dtype(x)
    block_m, block_n, warps = low_d_block(sums, kernel, d, dtype)
    packed = pack((*sources, v), block_n, dtype)
    tiles = packed.shape[1]
    programs = batch * triton.cdiv(m, block_m)
    splits = split(x, programs, tiles)
    u, f = outputs(x, splits, potential, field)
    kernel[(splits * programs,)](
        tuple(target.contiguous() for target in targets),
        packed,
        last_charge(v),
        u,
        f,
        parameters,
        batch,
        m,
        tiles,
        splits,
        KINDS=kinds,
        D=d,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=warps,
        enable_fp_fusion=True,
    )
    return joined(x, u, f)


def evaluate(x, y, v, kinds, parameters, potential, field):
    """`Backend.evaluate` for d <= MAX_DIMENSION; the kernel as in `kernels.radial`."""
    return _launch("evaluate", _evaluate, (x,), (y,), v, kinds, parameters, potential, field)


def tangent(x, y, v, s, t, kinds, parameters):
    """`Backend.tangent` for d <= MAX_DIMENSION."""
    return _launch("tangent", _tangent, (x, s), (y, t), v, kinds, parameters, True, True)
