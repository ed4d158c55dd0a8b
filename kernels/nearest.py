"""Nearest source of every target: squared distances from differences, so that clouds may lie far from the origin.

A program owns BLOCK_M targets of one cloud and walks through the sources, BLOCK_N at a time. Every entry of its
(BLOCK_M, BLOCK_N) tile of pairs remembers its least squared distance and the tile it was met in; rows are reduced
once, after the loop. Of equally near sources the first is found, whatever the block sizes.
"""

import torch
import triton
import triton.language as tl

from ddeq_fast.kernels.launch import nearest_block, split, sum_dtype
from ddeq_fast.kernels.sources import last_charge, tile_range

# Up to this dimension the coordinates of targets stay in registers; above it, so many are loaded at a time.
WIDTH = 8


@triton.jit
def _chunk(q, x, y, rows, columns, m, n, d, first, WIDTH: tl.constexpr):
    """q + the squared differences in coordinates [first, first + WIDTH) of clouds laid out as (d, m) and (d, n).

    q (BLOCK_M, BLOCK_N) is the tile of pairs of the points `rows` (BLOCK_M,) of x and `columns` (BLOCK_N,) of y.
    """
    for k in tl.static_range(WIDTH):
        coordinate = first + k
        at_x = x + coordinate * m.to(tl.int64) + rows
        at_y = y + coordinate * n.to(tl.int64) + columns
        at_x = tl.load(at_x, mask=rows < tl.where(coordinate < d, m, 0), other=0.0).to(q.dtype)
        at_y = tl.load(at_y, mask=columns < tl.where(coordinate < d, n, 0), other=0.0).to(q.dtype)
        difference = at_x[:, None] - at_y[None, :]  # (BLOCK_M, BLOCK_N)
        q += difference * difference
    return q


@triton.jit(do_not_specialize=["batch", "m", "n", "d", "splits"])
def _nearest(
    x,
    y,
    mask,
    last,
    least,
    index,
    batch,
    m,
    n,
    d,
    splits,
    UNROLLED: tl.constexpr,
    WIDTH: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The source nearest to each of BLOCK_M targets, among all sources or a share of them.

    Program p takes block p % cdiv(m, BLOCK_M) of the targets of group p // cdiv(m, BLOCK_M); group g is cloud
    g % batch, and of its sources the share g // batch of `splits`.

    Pointers: x (B, m, d) and y (B, n, d), or with UNROLLED = 0 laid out as (B, d, m) and (B, d, n); mask (B, n), zero
    for padding, and last (B,), where padding starts, both None where there is none. Written are index (splits, B, m),
    int64, and least (splits, B, m), the squared distance, unless None.

    UNROLLED is d if the coordinates of a target are held in registers; 0 if they are loaded WIDTH at a time for every
    tile. SUMS is the dtype of squared distances.
    """
    group = tl.program_id(0) // tl.cdiv(m, BLOCK_M)
    rows = (tl.program_id(0) % tl.cdiv(m, BLOCK_M)) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    cloud = (group % batch).to(tl.int64)
    x += cloud * m * d
    y += cloud * n * d
    target = ()  # UNROLLED times (BLOCK_M, 1)
    for k in tl.static_range(UNROLLED):
        target += (tl.load(x + rows.to(tl.int64) * UNROLLED + k, mask=rows < m, other=0.0).to(SUMS)[:, None],)

    best = tl.full((BLOCK_M, BLOCK_N), float("inf"), SUMS)
    met = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    stop = n if last is None else tl.load(last + cloud)
    first, end = tile_range(stop, group // batch, splits, BLOCK_N)
    source = y + first.to(tl.int64) * (BLOCK_N * UNROLLED) + tl.arange(0, BLOCK_N) * UNROLLED  # (BLOCK_N,)
    for tile in range(first, end):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        real = columns < n
        if mask is not None:
            real = tl.load(mask + cloud * n + columns, mask=real, other=0) != 0
        q = tl.zeros((BLOCK_M, BLOCK_N), SUMS) + tl.where(real, 0.0, float("inf"))[None, :]  # (BLOCK_M, BLOCK_N)
        for k in tl.static_range(UNROLLED):
            difference = target[k] - tl.load(source + k, mask=columns < n, other=0.0).to(SUMS)[None, :]
            q += difference * difference
        source += BLOCK_N * UNROLLED
        if UNROLLED == 0:
            for coordinate in range(0, d, WIDTH):
                q = _chunk(q, x, y, rows, columns, m, n, d, coordinate, WIDTH)
        closer = q < best
        best = tl.where(closer, q, best)
        met = tl.where(closer, tile, met)

    value = tl.min(best, 1)  # (BLOCK_M,)
    columns = met * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]  # (BLOCK_M, BLOCK_N)
    column = tl.min(tl.where(best == value[:, None], columns, n), 1)  # (BLOCK_M,)
    # Squares that all overflow have no least one, but padding must not be found.
    column = tl.where(value < float("inf"), column, tl.maximum(stop - 1, 0))
    out = group.to(tl.int64) * m + rows
    tl.store(index + out, column, mask=rows < m)
    if least is not None:
        tl.store(least + out, value, mask=rows < m)


def nearest(x, y, mask=None):
    """Index (B, m), int64, of the source in y (B, n, d) nearest to each target in x (B, m, d).

    `mask` (B, n), boolean, tells sources from padding; a cloud without a source gives zeros.
    """
    batch, m, d = x.shape
    n, dtype = y.shape[1], sum_dtype(x)
    block_m, block_n, warps = nearest_block(_nearest, d, dtype, WIDTH)
    programs = batch * triton.cdiv(m, block_m)
    splits = split(x, programs, triton.cdiv(n, block_n))
    mask = None if mask is None else mask.contiguous().view(torch.uint8)
    index = torch.empty(splits, batch, m, dtype=torch.int64, device=x.device)
    least = torch.empty(splits, batch, m, dtype=dtype, device=x.device) if splits > 1 else None
    _nearest[(splits * programs,)](
        *((cloud if d <= WIDTH else cloud.mT).contiguous() for cloud in (x, y)),
        mask,
        None if mask is None else last_charge(mask),
        least,
        index,
        batch,
        m,
        n,
        d,
        splits,
        UNROLLED=d if d <= WIDTH else 0,
        WIDTH=WIDTH,
        SUMS=tl.float64 if dtype == torch.float64 else tl.float32,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=warps,
        enable_fp_fusion=True,
    )
    return index[0] if splits == 1 else index.gather(0, least.argmin(0, keepdim=True))[0]
