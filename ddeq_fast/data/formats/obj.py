"""OBJ meshes (Wavefront), read strictly: vertices and polygons, no free-form curves and surfaces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddeq_fast.data.formats.mesh import Mesh, cut
from ddeq_fast.data.formats.reading import read_lines
from ddeq_fast.data.formats.table import parse_table

# Of no matter for the shape: texture, normals, parameters; points and lines; groups, objects, materials, rendering.
_PASSED = {"vt", "vn", "vp", "p", "l", "g", "o", "s", "mg", "usemtl", "mtllib", "usemap", "maplib"}
_PASSED |= {"bevel", "c_interp", "d_interp", "lod", "shadow_obj", "trace_obj"}
_CORNER = re.compile(r"([+-]?\d+)(?:/[+-]?\d*){0,2}", re.ASCII)
# Coordinates, and a weight, a colour, or both behind them.
_WIDTHS = (3, 4, 6, 7)


def read_vertices(path: str | Path) -> np.ndarray:
    """The vertices (n, 3), float64, of an OBJ file, of all its objects and groups; a weight or colour is left out.

    Raises FileNotFoundError, ValueError: as `read_mesh`.
    """
    return read_mesh(path).vertices


def read_mesh(path: str | Path) -> Mesh:
    """The mesh of an OBJ file; polygons are cut into triangles around their first corner, points and lines left out.

    A corner is v, v/vt, v//vn or v/vt/vn, of which v is read: counted from 1, or backwards from the last vertex above
    if it is negative. # begins a comment, a backslash at its end joins a line to the next.

    Raises:
        FileNotFoundError, ValueError: naming file and line: no vertices, not three finite coordinates a vertex, a face
        of fewer than three corners or with one that is no vertex, free-form geometry or another word that is none of
        the format's.
    """
    path = Path(path)
    lines = _joined(path, read_lines(path))
    rows = [""] * len(lines)  # what follows "v", a line a line, so that errors count them
    polygons: list[list[int]] = []
    places: list[int] = []
    count = 0
    for i, line in enumerate(lines):
        word, _, rest = line.partition("#")[0].strip().replace("\t", " ").partition(" ")
        if word == "v":
            # Nothing behind the word would be a blank line.
            rows[i], count = rest.strip() or "?", count + 1
        elif word in ("f", "fo"):
            polygons.append(_corners(path, i + 1, rest, count))
            places.append(i + 1)
        elif word and word not in _PASSED:
            raise ValueError(
                f"{path}, line {i + 1}: {line.strip()[:40]!r} does not belong in an OBJ file of vertices and polygons"
            )
    if not count:
        raise ValueError(f"{path} holds no vertices")
    table = parse_table(rows, path, comments=None)
    if table.shape[1] not in _WIDTHS:
        first = next(i for i, row in enumerate(rows, start=1) if row)
        raise ValueError(f"{path}, line {first}: a vertex has 3 coordinates, got {table.shape[1]}")
    for place, corners in zip(places, polygons, strict=True):
        if max(corners) >= count:
            raise ValueError(f"{path}, line {place}: a face has vertex {max(corners) + 1}, the file {count}")
    return Mesh(table[:, :3], cut(polygons))


def _joined(path: Path, lines: Sequence[str]) -> list[str]:
    """The lines, each with those that continue it; what has been joined leaves blank lines."""
    found = list(lines)
    for i in range(len(found) - 1, -1, -1):
        line = found[i].rstrip()
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            if i + 1 == len(found):
                raise ValueError(f"{path}, line {i + 1}: truncated: a line that is to continue is the last")
            found[i], found[i + 1] = f"{line[:-1]} {found[i + 1]}", ""
    return found


def _corners(path: Path, number: int, text: str, count: int) -> list[int]:
    """Indices from 0 of the vertices of a face that stands below `count` of them."""
    words = text.split()
    found = [_CORNER.fullmatch(word) for word in words]
    values = [int(corner[1]) for corner in found if corner and len(corner[1]) < 20]
    if len(values) < len(words) or len(words) < 3 or 0 in values or min(values) < -count:
        raise ValueError(
            f"{path}, line {number}: expected a face: three corners or more, v, v/vt, v//vn or v/vt/vn, with v from 1, "
            f"or from -1 to -{count}; got {text.strip()[:60]!r}"
        )
    return [value - 1 if value > 0 else count + value for value in values]
