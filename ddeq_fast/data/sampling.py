"""Smaller clouds from larger ones, and clouds from meshes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddeq_fast.data.dataset import check_generator
from ddeq_fast.utils.validation import check_cloud, check_integer, check_number


def voxel_grid(points: Tensor, size: float) -> Tensor:
    """One point for each occupied cell of a grid: the mean of the points inside.

    Args:
        points: (n, d), floating-point.
        size: edge of the cells, in the units of the points; the first cell begins at the least coordinates.

    Returns:
        (m, d), m <= n, in lexicographic order of the cells, of the dtype of the points.

    Raises:
        TypeError, ValueError: bad shape, dtype or size, NaN, or more cells than 64 bits count.
    """
    _check(points)
    cells, number = _cells(points, check_number("size", size)).unique(return_inverse=True)
    sums = points.new_zeros(len(cells), points.shape[1], dtype=torch.float64).index_add_(0, number, points.double())
    return (sums / number.bincount()[:, None]).to(points.dtype)


def voxel_reduce(points: Tensor, low: int, high: int) -> Tensor:
    """The cloud reduced by `voxel_grid` to at least `low` and at most `high` points, with the size of cells that does.

    A cloud of at most `high` points stays as it is. Where no size of cells leads into the range (many points coincide),
    the result is the largest one found below it.

    Args:
        points: (n, d), floating-point.
        low, high: 1 <= low <= high.

    Raises:
        TypeError, ValueError: bad shape, dtype or range, NaN.
    """
    _check(points)
    check_integer("high", high)
    check_integer("low", low, high=high)
    if len(points) <= high:
        return points
    extent = float((points.amax(0).double() - points.amin(0).double()).max()) or 1.0
    # The coarsest grid has 2 ** d cells at most; points nearer than the finest resolves count as one.
    fine, coarse, best, most = extent * 1e-4, extent * 2.0, extent * 2.0, 0
    while coarse / fine > 1 + 1e-6:
        size = (fine * coarse) ** 0.5
        count = len(_cells(points, size).unique())
        if most < count <= high:
            best, most = size, count
        if low <= count <= high:
            break
        fine, coarse = (size, coarse) if count > high else (fine, size)
    return voxel_grid(points, best)


def _check(points: Tensor) -> None:
    if check_cloud("points", points).dim() != 2:
        raise ValueError(f"points must have shape (n, d), got {tuple(points.shape)}")


def _cells(points: Tensor, size: float) -> Tensor:
    """(n,) int64: the number of each point's cell, in lexicographic order of the cells."""
    points = points.double()  # half precision has no place for the cells' numbers
    cells = ((points - points.amin(0)) / size).floor()
    shape = [int(min(extent, 1 << 63)) + 1 for extent in cells.amax(0).tolist()]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    total = math.prod(shape)
    if total >= 1 << 63:
        raise ValueError(f"size is too small: a grid of {' x '.join(map(str, shape))} cells cannot be numbered")
    return (cells.long() * torch.tensor(strides, device=points.device)).sum(1)


def sample_surface(vertices: Tensor, triangles: Tensor, number: int, draw: torch.Generator) -> Tensor:
    """Points drawn independently and uniformly from the surface of a mesh, in its dtype.

    Args:
        vertices: (n, 3), floating-point.
        triangles: (m, 3) int64, indices of vertices.
        number: of points.
        draw: source of all randomness; three draws a point.

    Raises:
        TypeError, ValueError: bad shape or dtype, NaN, an index that is no vertex's, or a surface without area.
    """
    if check_cloud("vertices", vertices).dim() != 2 or vertices.shape[1] != 3:
        raise ValueError(f"vertices must have shape (n, 3), got {tuple(vertices.shape)}")
    check_integer("number", number)
    check_generator("draw", draw)
    if not isinstance(triangles, Tensor):
        raise TypeError(f"triangles must be a torch.Tensor, got {type(triangles).__name__}")
    if triangles.dim() != 2 or triangles.shape[1] != 3 or triangles.dtype != torch.int64:
        raise ValueError(f"triangles must be int64 of shape (m, 3), got {triangles.dtype} {tuple(triangles.shape)}")
    if len(triangles) and not 0 <= int(triangles.min()) <= int(triangles.max()) < len(vertices):
        low, high = int(triangles.min()), int(triangles.max())
        raise ValueError(f"triangles must name vertices from 0 to {len(vertices) - 1}, got {low} to {high}")
    corners = vertices.double()[triangles]  # (m, 3, 3)
    first, edges = corners[:, 0], corners[:, 1:] - corners[:, :1]
    areas = torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=1)
    total = areas.cumsum(0)
    if not len(total) or not total[-1] > 0:
        raise ValueError(f"triangles must cover an area, got {len(triangles)} triangles of none")
    place, u, v = torch.rand(3, number, generator=draw, dtype=torch.float64)
    # right=True: a triangle without area is never chosen, not even by a draw of exactly zero
    chosen = torch.searchsorted(total, place * total[-1], right=True).clamp_max(int(areas.nonzero()[-1]))
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    points = first[chosen] + u[:, None] * edges[chosen, 0] + v[:, None] * edges[chosen, 1]
    return points.to(vertices.dtype)


def cut(points: Tensor, most: int | None, draw: torch.Generator) -> Tensor:
    """The cloud (n, d), or `most` of its points, drawn at random, in their order, if it has more."""
    if most is None or len(points) <= most:
        return points
    return points[torch.randperm(len(points), generator=draw)[:most].sort().values]


def to_unit_ball(points: Tensor) -> Tensor:
    """The cloud (n, d) moved to mean zero and scaled to a largest norm of one; coinciding points all become zero.

    Raises TypeError, ValueError: bad shape or dtype, NaN.
    """
    _check(points)
    exact = points.double()  # sums of half precision and squares of single precision may overflow
    centred = exact - exact.mean(0)
    return _scaled(points, centred, centred.norm(dim=1).max())


def to_unit_box(points: Tensor) -> Tensor:
    """The cloud (n, d) with the centre of its bounding box moved to zero, and scaled to a largest coordinate of one.

    The box keeps its proportions; coinciding points all become zero.

    Raises TypeError, ValueError: bad shape or dtype, NaN.
    """
    _check(points)
    exact = points.double()
    centred = exact - (exact.amin(0) + exact.amax(0)) / 2
    return _scaled(points, centred, centred.abs().max())


def _scaled(points: Tensor, centred: Tensor, size: Tensor) -> Tensor:
    """The centred points divided by their size, zero where it is but rounding."""
    rounding = 8 * torch.finfo(points.dtype).eps * points.double().abs().max()
    return (centred / size if size > rounding else torch.zeros_like(centred)).to(points.dtype)


# Where clouds lie, and how large they are.
NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ball": to_unit_ball,
    "box": to_unit_box,
    "none": lambda points: points,
}
