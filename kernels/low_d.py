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
def _load_targets(points, first, rows, m, D: tl.constexpr, dtype: tl.constexpr):
    """The D coordinates of `rows` of a cloud (m, D) that starts at point `first`, each (BLOCK_M, 1)."""
    found = ()
    for k in tl.static_range(D):
        value = tl.load(points + (first + rows) * D + k, mask=rows < m, other=0.0)
        found += (value.to(dtype)[:, None],)
    return found


@triton.jit
def _load_sources(tile, FIRST: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr):
    """D rows of a tile of packed sources from row FIRST on, each (1, BLOCK_N)."""
    found = ()
    for k in tl.static_range(FIRST, FIRST + D):
        found += (tl.load(tile + k * BLOCK_N + tl.arange(0, BLOCK_N))[None, :],)
    return found


@triton.jit(do_not_specialize=["batch", "m", "tiles", "splits"])
def _sums(
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
    CODES: tl.constexpr,
    D: tl.constexpr,
    TANGENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Potential and field of packed sources at BLOCK_M targets a program; with TANGENT their derivatives.

    Program p takes block p % cdiv(m, BLOCK_M) of the targets of group p // cdiv(m, BLOCK_M); group g is cloud
    g % batch, and of its sources the share g // batch of `splits`.

    Pointers: targets, a tuple of x (B, m, D) and, with TANGENT, their directions s; sources (B, tiles, WIDTH, BLOCK_N),
    made by `pack` of y, with TANGENT their directions t, and the charges; last (B,), how many sources to read. Written
    are u (splits, B, m) and f (splits, B, m, D), each unless None.

    CODES and parameters are the kernel, see `kernels.radial`; all arithmetic is in the dtype of `sources`.
    """
    WIDTH: tl.constexpr = 2 * D + 1 if TANGENT else D + 1
    dtype = sources.dtype.element_ty
    group = tl.program_id(0) // tl.cdiv(m, BLOCK_M)
    rows = (tl.program_id(0) % tl.cdiv(m, BLOCK_M)) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    cloud = (group % batch).to(tl.int64)
    coefficients = radial.unpack(CODES, parameters, dtype)
    x = _load_targets(targets[0], cloud * m, rows, m, D, dtype)  # D times (BLOCK_M, 1)
    if TANGENT:
        s = _load_targets(targets[1], cloud * m, rows, m, D, dtype)  # D times (BLOCK_M, 1)

    u_sum = tl.zeros((BLOCK_M, BLOCK_N), dtype)
    f_sum = ()  # D times (BLOCK_M, BLOCK_N)
    for _ in tl.static_range(D):
        f_sum += (tl.zeros((BLOCK_M, BLOCK_N), dtype),)
    first, stop = tile_range(tl.load(last + cloud), group // batch, splits, BLOCK_N)
    tile = sources + (cloud * tiles + first) * (WIDTH * BLOCK_N)
    for _ in range(first, stop):
        y = _load_sources(tile, 0, D, BLOCK_N)  # D times (1, BLOCK_N)
        if TANGENT:
            t = _load_sources(tile, D, D, BLOCK_N)  # D times (1, BLOCK_N)
        (v,) = _load_sources(tile, WIDTH - 1, 1, BLOCK_N)  # (1, BLOCK_N)
        tile += WIDTH * BLOCK_N
        q = tl.full((BLOCK_M, BLOCK_N), radial.guard(dtype), dtype)
        d = ()  # D times (BLOCK_M, BLOCK_N)
        for k in tl.static_range(D):
            d += (x[k] - y[k],)
            q += d[k] * d[k]
        total = ()
        if TANGENT:
            along = tl.zeros((BLOCK_M, BLOCK_N), dtype)
            move = ()  # D times (BLOCK_M, BLOCK_N)
            for k in tl.static_range(D):
                move += (s[k] - t[k],)
                along += d[k] * move[k]
            vphi, bend, inverse = radial.charged_slopes(CODES, coefficients, q, along, v)
            u_sum += vphi * along
            for k in tl.static_range(D):
                total += (f_sum[k] + vphi * move[k] + bend * (d[k] * inverse),)
            f_sum = total
        else:
            vk, vphi = radial.charged(CODES, coefficients, q, v)
            if u is not None:
                u_sum += vk
            if f is not None:
                for k in tl.static_range(D):
                    total += (f_sum[k] + vphi * d[k],)
                f_sum = total

    factor_k, factor_phi = radial.outer_factors(CODES, coefficients)
    if TANGENT:
        factor_k = factor_phi
    out = group.to(tl.int64) * m + rows  # (BLOCK_M,)
    if u is not None:
        tl.store(u + out, factor_k * tl.sum(u_sum, 1), mask=rows < m)
    if f is not None:
        for k in tl.static_range(D):
            tl.store(f + out * D + k, factor_phi * tl.sum(f_sum[k], 1), mask=rows < m)


def _launch(sums, targets, sources, v, codes, parameters, potential, field):
    """`sums`, "evaluate" or "tangent", at targets, each (B, m, d), of sources, each (B, n, d), with charges v (B, n).

    Returns the sums of shape (B, m) and (B, m, d), None for what is not wanted.
    """
    x = targets[0]
    batch, m, d = x.shape
    dtype = sum_dtype(x)
    block_m, block_n, warps = low_d_block(sums, _sums, d, dtype)
    packed = pack((*sources, v), block_n, dtype)
    tiles = packed.shape[1]
    programs = batch * triton.cdiv(m, block_m)
    splits = split(x, programs, tiles)
    u, f = outputs(x, splits, potential, field)
    _sums[(splits * programs,)](
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
        CODES=codes,
        D=d,
        TANGENT=sums == "tangent",
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=warps,
        enable_fp_fusion=True,
    )
    return joined(x, u, f)


def evaluate(x, y, v, codes, parameters, potential, field):
    """`Backend.evaluate` for d <= MAX_DIMENSION; the kernel as in `kernels.radial`."""
    return _launch("evaluate", (x,), (y,), v, codes, parameters, potential, field)


def tangent(x, y, v, s, t, codes, parameters):
    """`Backend.tangent` for d <= MAX_DIMENSION."""
    return _launch("tangent", (x, s), (y, t), v, codes, parameters, True, True)
