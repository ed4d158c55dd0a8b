"""Derivatives of potential and field as the targets x move along s and the sources y along t.

With d = x_i - y_j, a move p = s_i - t_j and q = |d|^2,

    du_i = sum_j v_j phi <d, p>,        df_i = sum_j v_j (phi p + 2 phi' <d, p> d).

The second part of df is taken as 2 q phi' <d/|d|, p> d/|d|: phi' alone overflows near a cusp.
"""

import triton
import triton.language as tl
from ddeq_fast.kernels import radial
from ddeq_fast.kernels.low_d import launch, load_columns, load_rows, tile_range


@triton.jit(do_not_specialize=["batch", "m", "tiles", "splits"])
def _low_d(
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
    x = load_rows(targets[0], cloud * m, rows, m, D, dtype)
    s = load_rows(targets[1], cloud * m, rows, m, D, dtype)

    du_sum = tl.zeros((BLOCK_M, BLOCK_N), dtype)
    df_sum = ()
    for _ in tl.static_range(D):
        df_sum += (tl.zeros((BLOCK_M, BLOCK_N), dtype),)
    first, stop = tile_range(tl.load(last + cloud), group // batch, splits, BLOCK_N)
    tile = sources + (cloud * tiles + first) * ((2 * D + 1) * BLOCK_N)
    for _ in range(first, stop):
        y = load_columns(tile, 0, D, BLOCK_N)
        t = load_columns(tile, D, D, BLOCK_N)
        (v,) = load_columns(tile, 2 * D, 1, BLOCK_N)
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
        vphi, curvature = radial.charged_slopes(KINDS, coefficients, q, v)
        inverse = tl.rsqrt(q)
        bend = curvature * (along * inverse) * inverse
        du_sum += vphi * along
        total = ()
        for k in tl.static_range(D):
            total += (df_sum[k] + vphi * move[k] + bend * d[k],)
        df_sum = total

    _, factor = radial.outer_factors(KINDS, coefficients)
    out = group.to(tl.int64) * m + rows
    tl.store(du + out, factor * tl.sum(du_sum, 1), mask=rows < m)
    for k in tl.static_range(D):
        tl.store(df + out * D + k, factor * tl.sum(df_sum[k], 1), mask=rows < m)


def low_d(x, y, v, s, t, kinds, parameters):
    """`Backend.tangent` for d <= `low_d.MAX_DIMENSION`."""
    return launch("tangent", _low_d, (x, s), (y, t), v, kinds, parameters, True, True)
