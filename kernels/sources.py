"""Sources laid out for the kernels: whole tiles, coordinates as rows, and where the padding starts."""

import torch
import triton
import triton.language as tl


@triton.jit
def _pack_array(array, packed, rows, inside, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr):
    """Write `rows` (BLOCK_N,) of array (B * n, WIDTH) as the columns of a tile (WIDTH, BLOCK_N), zero if not inside."""
    for k in tl.static_range(WIDTH):
        tl.store(packed + k * BLOCK_N, tl.load(array + rows * WIDTH + k, mask=inside, other=0.0))


@triton.jit(do_not_specialize=["n"])
def _pack(arrays, packed, n, tiles, WIDTHS: tl.constexpr, TOTAL: tl.constexpr, BLOCK_N: tl.constexpr):
    """One tile of sources a program: program p makes tile p % tiles of cloud p // tiles.

    Pointers: arrays, a tuple of (B, n, width) with widths WIDTHS, TOTAL in all; packed (B, tiles, TOTAL, BLOCK_N).
    """
    cloud = (tl.program_id(0) // tiles).to(tl.int64)
    columns = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    packed += tl.program_id(0).to(tl.int64) * (TOTAL * BLOCK_N) + tl.arange(0, BLOCK_N)
    for i in tl.static_range(len(WIDTHS)):
        _pack_array(arrays[i], packed, cloud * n + columns, columns < n, tl.constexpr(WIDTHS[i]), BLOCK_N)
        packed += WIDTHS[i] * BLOCK_N


@triton.jit(do_not_specialize=["n"])
def _last_charge(v, last, n, BLOCK: tl.constexpr):
    """1 + the index of a cloud's last charge that is not zero, searched from the end, BLOCK charges at a time.

    Program p takes cloud p. Pointers: v (B, n), charges or a mask; last (B,) int32, written.
    """
    cloud = tl.program_id(0).to(tl.int64)
    start = tl.cdiv(n, BLOCK) * BLOCK
    found = 0
    while (found == 0) & (start > 0):
        start -= BLOCK
        columns = start + tl.arange(0, BLOCK)  # (BLOCK,)
        charge = tl.load(v + cloud * n + columns, mask=columns < n, other=0.0)
        found = tl.max(tl.where(charge != 0, columns + 1, 0))
    tl.store(last + cloud, found)


@triton.jit
def tile_range(last, split, splits, BLOCK_N: tl.constexpr):
    """Which tiles of the sources [0, last) make share `split` of `splits`: (first, end)."""
    tiles = tl.cdiv(last, BLOCK_N)
    share = tl.cdiv(tiles, splits)
    return split * share, tl.minimum((split + 1) * share, tiles)


def pack(arrays, block_n, dtype):
    """Arrays (B, n, width) or (B, n) as one (B, tiles, total width, block_n), zero past n.

    A tile of block_n sources is contiguous: a kernel walks through tiles with a single pointer.
    """
    batch, n = arrays[0].shape[:2]
    widths = tuple(a.shape[2] if a.dim() == 3 else 1 for a in arrays)
    tiles = triton.cdiv(n, block_n)
    packed = torch.empty(batch, tiles, sum(widths), block_n, dtype=dtype, device=arrays[0].device)
    arrays = tuple(a.contiguous() for a in arrays)
    options = {"WIDTHS": widths, "TOTAL": sum(widths), "BLOCK_N": block_n, "num_warps": 1, "enable_fp_fusion": True}
    _pack[(batch * tiles,)](arrays, packed, n, tiles, **options)
    return packed


def last_charge(v):
    """(B,) int32: how many leading charges of v (B, n) there are before nothing but zeros; stays on the device."""
    last = torch.empty(len(v), dtype=torch.int32, device=v.device)
    _last_charge[(len(v),)](v.contiguous(), last, v.shape[1], BLOCK=1024, enable_fp_fusion=True)
    return last
