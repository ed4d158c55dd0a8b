"""Nearest points by blocks of all distances: any dimension, any device."""

from __future__ import annotations

import torch
from torch import Tensor

# Distances a block may hold: fits into a processor's cache.
BLOCK_ENTRIES = 1 << 20


def search(x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Index (B, m) of the first real source in y (B, n, d) that is nearest to each target in x (B, m, d)."""
    rows = max(1, BLOCK_ENTRIES // (x.shape[0] * y.shape[1]))
    found = []
    for block in x.split(rows, 1):
        distance = distances(block, y)
        if mask is not None:
            distance = distance.clamp_max(torch.finfo(x.dtype).max).masked_fill(~mask[:, None], float("inf"))
        found.append(distance.argmin(-1))
    return torch.cat(found, 1)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|, (B, m, n), not through products of coordinates, which cancel."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
