"""Nearest points by scipy's k-d tree: on CPUs, in few dimensions, far faster than all distances.

The tree finds candidates in float64; of those that differ by rounding alone the one is taken that the search by blocks
takes, so that both give the same index.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddeq_fast.distances import blocks
from ddeq_fast.utils.optional import available, install, require

# (largest dimension, least number of points of either cloud) from where a tree is faster than blocks of distances, as
# measured on one thread: at the least number by a fifth or more, for 10,000 points in 3-D by a factor of forty.
SIZES = ((4, 500), (6, 1000), (8, 5000))
# Candidates of a target; with more that are equally near, all its distances are compared.
MOST_CANDIDATES = 32


def unsupported(x: Tensor) -> str | None:
    """Needs a CPU and scipy."""
    if x.device.type != "cpu":
        return f"needs a tensor on a CPU, got one on {x.device.type}"
    return None if available("scipy") else f"scipy is not installed: {install('metrics')}"


def pays(x: Tensor, y: Tensor) -> bool:
    """Whether a tree can run, and beats blocks of distances, for clouds x (B, m, d) and y (B, n, d)."""
    least = next((least for most, least in SIZES if x.shape[2] <= most), None)
    return least is not None and min(x.shape[1], y.shape[1]) >= least and unsupported(x) is None


def search(x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Index (B, m) of the first real source in y (B, n, d) that is nearest to each target in x (B, m, d)."""
    masks = [None] * len(x) if mask is None else list(mask)
    return torch.stack([_one(*clouds) for clouds in zip(x, y, masks, strict=True)])


def _one(x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Index (m,) for one pair of clouds."""
    real = torch.arange(len(y)) if mask is None else mask.nonzero()[:, 0]
    points = y[real]
    if len(real) == 0 or not bool(torch.isfinite(points).all() and torch.isfinite(x).all()):
        return blocks.search(x[None], y[None], None if mask is None else mask[None])[0]
    first = _first_of_each(points.double().numpy())
    sources, targets = points[first], x.double().numpy()
    tree = require("scipy.spatial", "metrics").cKDTree(sources.double().numpy())
    nearest = torch.zeros(len(x), dtype=torch.int64)
    # Distances in the dtype of the clouds, as those of blocks, are wrong by less than this.
    slack = 1 + (x.shape[1] + 4) * torch.finfo(x.dtype).eps
    rows, count = np.arange(len(x)), 2
    while len(rows) and count // 2 < len(sources) and count <= MOST_CANDIDATES:
        distance, index = tree.query(targets[rows], k=np.arange(1, count + 1), workers=torch.get_num_threads())
        settled = (distance[:, -1] > slack * distance[:, 0]) & np.isfinite(distance[:, 0])
        rows_done, index = rows[settled], index[settled]
        nearest[torch.from_numpy(rows_done)] = _first_nearest(x[rows_done], sources, index, distance[settled], slack)
        rows, count = rows[~settled], 2 * count
    if len(rows):
        nearest[torch.from_numpy(rows)] = blocks.search(x[None, rows], sources[None], None)[0]
    return real[first][nearest]


def _first_of_each(points: np.ndarray) -> Tensor:
    """Rising indices of the first of all that coincide with it: many in one place would make the tree a list."""
    order = np.lexsort(points.T)
    ordered = points[order]
    new = np.concatenate(([True], (ordered[1:] != ordered[:-1]).any(1)))
    return torch.from_numpy(np.sort(order[new]))  # the sort is stable: the first of a group has the lowest index


def _first_nearest(x: Tensor, y: Tensor, index: np.ndarray, distance: np.ndarray, slack: float) -> Tensor:
    """Among candidates (m, k), sorted by distance (m, k), the index of the first of the nearest to each target."""
    nearest = torch.from_numpy(index[:, 0])
    several = distance[:, 1] <= slack * distance[:, 0]
    if several.any():
        tied = torch.from_numpy(np.sort(index[several].clip(max=len(y) - 1), 1))
        exact = blocks.distances(x[several][:, None], y[tied])[:, 0]
        nearest[torch.from_numpy(several)] = tied.gather(1, exact.argmin(1, keepdim=True))[:, 0]
    return nearest
