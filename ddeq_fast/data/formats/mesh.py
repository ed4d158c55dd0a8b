"""What files of meshes are read to, and how polygons become triangles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Mesh(NamedTuple):
    """vertices: (n, d) float64; triangles: (m, 3) int64, indices of vertices; none of a file that is a cloud."""

    vertices: np.ndarray
    triangles: np.ndarray


def cut(polygons: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
    """Triangles (m, 3), int64, of polygons around their first corners: of one size, an array (p, size), or any.

    Points and edges have none.
    """
    if isinstance(polygons, np.ndarray):
        cuts = [[0, i, i + 1] for i in range(1, polygons.shape[1] - 1)]
        return polygons[:, np.array(cuts, np.int64).reshape(-1, 3)].reshape(-1, 3).astype(np.int64)
    fans = [(corners[0], corners[i], corners[i + 1]) for corners in polygons for i in range(1, len(corners) - 1)]
    return np.array(fans, np.int64).reshape(-1, 3)
