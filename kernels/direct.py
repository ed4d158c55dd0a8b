"""Potential, field and their derivatives in any dimension, one source at a time: for few sources, and in float64.

A program holds all coordinates of BLOCK_M targets in registers and walks through the sources of their cloud; a
squared distance is a sum along a row. Differences are formed outright, so that clouds may lie far from the origin and
points close to each other. Nothing is prepared by another launch: with few sources, launching is what takes time.
"""

import torch
import triton
import triton.language as tl
from ddeq_fast.kernels import radial
from ddeq_fast.kernels.launch import direct_block, joined, outputs, sum_dtype
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


@triton.jit(do_not_specialize=["m", "n"])
def _evaluate(
    x,
    y,
    v,
    last,
    u,
    f,
    parameters,
    m,
    n,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    SUMS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    cloud, rows, offsets, inside = _place(m, D, BLOCK_M, BLOCK_D)
    target = tl.load(x + offsets, mask=inside, other=0.0).to(SUMS)
    coefficients = radial.unpack(KINDS, parameters, SUMS)
    u_sum = tl.zeros((BLOCK_M,), SUMS)
    f_sum = tl.zeros((BLOCK_M, BLOCK_D), SUMS)
    start = cloud * n
    stop = start + (n if last is None else tl.load(last + cloud))
    for first in range(start, stop, UNROLL):
        for k in tl.static_range(UNROLL):
            j = first + k
            charge = tl.load(v + j, mask=j < stop, other=0.0).to(SUMS)
            d = target - _row(y, j, stop, D, BLOCK_D).to(SUMS)
            q = tl.sum(d * d, 1) + radial.guard(SUMS)
            vk, vphi = radial.charged(KINDS, coefficients, q, charge)
            if u is not None:
                u_sum += vk
            if f is not None:
                f_sum += vphi[:, None] * d

    factor_k, factor_phi = radial.outer_factors(KINDS, coefficients)
    if u is not None:
        tl.store(u + cloud * m + rows, factor_k * u_sum, mask=rows < m)
    if f is not None:
        tl.store(f + offsets, factor_phi * f_sum, mask=inside)


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
    parameters,
    m,
    n,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    SUMS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    cloud, rows, offsets, inside = _place(m, D, BLOCK_M, BLOCK_D)
    target = tl.load(x + offsets, mask=inside, other=0.0).to(SUMS)
    target_move = tl.load(s + offsets, mask=inside, other=0.0).to(SUMS)
    coefficients = radial.unpack(KINDS, parameters, SUMS)
    du_sum = tl.zeros((BLOCK_M,), SUMS)
    df_sum = tl.zeros((BLOCK_M, BLOCK_D), SUMS)
    start = cloud * n
    stop = start + (n if last is None else tl.load(last + cloud))
    for first in range(start, stop, UNROLL):
        for k in tl.static_range(UNROLL):
            j = first + k
            charge = tl.load(v + j, mask=j < stop, other=0.0).to(SUMS)
            d = target - _row(y, j, stop, D, BLOCK_D).to(SUMS)
            move = target_move - _row(t, j, stop, D, BLOCK_D).to(SUMS)
            q = tl.sum(d * d, 1) + radial.guard(SUMS)
            along = tl.sum(d * move, 1)
            vphi, bend = radial.charged_slopes(KINDS, coefficients, q, along, charge)
            du_sum += vphi * along
            df_sum += vphi[:, None] * move + bend[:, None] * d

    _, factor = radial.outer_factors(KINDS, coefficients)
    tl.store(du + cloud * m + rows, factor * du_sum, mask=rows < m)
    tl.store(df + offsets, factor * df_sum, mask=inside)


def _launch(kernel, points, v, sums, kinds, parameters):
    """Run `kernel` on points (targets before sources) and charges v, writing `sums`."""
    x, n = points[0], v.shape[1]
    batch, m, d = x.shape
    block_m, warps = direct_block(kernel, d * (len(points) // 2), sum_dtype(x))
    kernel[(batch * triton.cdiv(m, block_m),)](
        *(p.contiguous() for p in points),
        v.contiguous(),
        last_charge(v) if n > FEW_SOURCES else None,
        *sums,
        parameters,
        m,
        n,
        KINDS=kinds,
        D=d,
        SUMS=tl.float64 if sum_dtype(x) == torch.float64 else tl.float32,
        UNROLL=4,
        BLOCK_M=block_m,
        BLOCK_D=triton.next_power_of_2(d),
        num_warps=warps,
        enable_fp_fusion=True,
    )
    return joined(x, *sums)


def evaluate(x, y, v, kinds, parameters, potential, field):
    """`Backend.evaluate`; the kernel as in `kernels.radial`."""
    return _launch(_evaluate, (x, y), v, outputs(x, 1, potential, field), kinds, parameters)


def tangent(x, y, v, s, t, kinds, parameters):
    """`Backend.tangent`."""
    return _launch(_tangent, (x, s, y, t), v, outputs(x, 1, True, True), kinds, parameters)
