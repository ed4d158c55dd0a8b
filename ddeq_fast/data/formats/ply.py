"""Vertices and faces of PLY files (Turk 1994), ASCII and binary: the header, and what to read of the body."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np

from ddeq_fast.data.formats.mesh import Mesh, cut
from ddeq_fast.data.formats.ply_body import Body, Element, Wanted, binary_body, text_body
from ddeq_fast.data.formats.reading import read_bytes, split_lines, unmarked

# Letters of the struct module, which numpy shares.
_TYPES = {
    **{"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d"},
    **{"int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I"},
    **{"float32": "f", "float64": "d"},
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_AXES = ("x", "y", "z")
_CORNERS = ("vertex_indices", "vertex_index")


def read_ply(path: Path) -> np.ndarray:
    """The vertices (n, d), float64: their properties x and y, and z if there is one, in small letters or capitals.

    In ASCII every record must have a line of its own; blank lines may stand anywhere. Every record must be there, and
    nothing after the last, so that no read is shifted unnoticed.

    Raises ValueError naming the file, and the line where there are lines, if it is damaged or holds no vertices.
    """
    return _read(path, faces=False).coordinates


def read_mesh(path: Path) -> Mesh:
    """The vertices of a PLY file, as `read_ply`, and its faces, of which a file that is a cloud has none.

    Faces are the lists vertex_indices or vertex_index of the element face; polygons are cut into triangles around their
    first corner.

    Raises ValueError as `read_ply`, and for faces of none of these names, of points in the plane, or with a corner that
    is no vertex, and for strips of triangles.
    """
    vertices, polygons = _read(path, faces=True)
    if not len(polygons):
        return Mesh(vertices, np.empty((0, 3), np.int64))
    if vertices.shape[1] != 3:
        raise ValueError(f"{path} has faces, but points in {vertices.shape[1]} dimensions")
    corners = polygons.ravel() if isinstance(polygons, np.ndarray) else np.array([*chain(*polygons)], np.int64)
    wrong = (corners < 0) | (corners >= len(vertices))
    if wrong.any():
        raise ValueError(
            f"{path}: corners of a face must be from 0 to {len(vertices) - 1}, got {corners[wrong.argmax()]}"
        )
    return Mesh(vertices, cut(polygons))


def _read(path: Path, faces: bool) -> Body:
    """Vertices, and polygons if there are `faces` to be read."""
    content = unmarked(read_bytes(path))
    order, elements, size, lines = _header(path, content)
    places = [i for i, element in enumerate(elements) if element.name.lower() == "vertex"]
    vertex = elements[places[0]] if places else Element("vertex", 0)
    axes = [name for axis in _AXES for name in vertex.properties if name.lower() == axis]
    found = "".join(axes).lower()
    if len(places) > 1 or len(set(found)) < len(found):
        raise ValueError(f"{path}: its header names vertices, or one of their coordinates, twice")
    if not vertex.count or found not in ("xy", "xyz"):
        raise ValueError(f"{path}: its header names no vertices with x and y")
    if any(isinstance(vertex.properties[axis], tuple) for axis in axes):
        raise ValueError(f"{path}: its header makes a list of a coordinate")
    wanted = Wanted(places[0], axes, *(_faces(path, elements) if faces else ()))
    if order:
        return binary_body(path, content, size, order, elements, wanted)
    return text_body(path, split_lines(content[size:]), lines, elements, wanted)


def _faces(path: Path, elements: list[Element]) -> tuple[int, str] | tuple[()]:
    """(place of the element face, name of its list of corners), nothing of a file without faces."""
    for i, element in enumerate(elements):
        if element.name.lower() == "tristrips" and element.count:
            raise ValueError(f"{path} has strips of triangles, which are not read: write it with faces")
        if element.name.lower() == "face" and element.count:
            for name, kind in element.properties.items():
                if name.lower() in _CORNERS and isinstance(kind, tuple) and kind[1] not in "fd":
                    return i, name
            raise ValueError(f"{path}: its header names faces, but no list {' or '.join(_CORNERS)} of integers")
    return ()


def _header(path: Path, content: bytes) -> tuple[str, list[Element], int, int]:
    """(byte order, "" for text; elements; bytes and lines of the header)."""
    order: str | None = None
    elements: list[Element] = []
    start = number = 0
    # The first line tells how lines end. CR may be all; a stray one before LF is white space.
    end = b"\r" if content.startswith(b"ply\r") and content[4:5] != b"\n" else b"\n"
    while (stop := content.find(end, start)) >= 0:
        words = content[start:stop].decode("ascii", errors="replace").split()
        start, number = stop + 1, number + 1
        try:
            match words:
                case _ if number == 1:
                    if words != ["ply"]:
                        raise KeyError
                case ["comment" | "obj_info", *_] | []:
                    pass
                case ["format", name, "1.0"] if order is None:
                    order = _ORDERS[name]
                case ["element", name, count] if count.isdecimal() and name not in [e.name for e in elements]:
                    elements.append(Element(name, int(count)))
                case ["property", *kind, name] if name not in elements[-1].properties:
                    elements[-1].properties[name] = _kind(kind)
                case ["end_header"] if order is not None:
                    return order, elements, start, number
                case _:
                    raise KeyError
        except (KeyError, ValueError, IndexError):
            line = " ".join(words)[:40]
            raise ValueError(f"{path}, line {number}: {line!r} does not belong in the header of a PLY file") from None
    raise ValueError(f"{path}, line {number + 1}: the header of a PLY file ends with end_header, this one does not")


def _kind(words: list[str]) -> str | tuple[str, str]:
    match words:
        case ["list", length, entries] if _TYPES[length] not in "fd":
            return _TYPES[length], _TYPES[entries]
        case [name]:
            return _TYPES[name]
    raise KeyError


def ply_bytes(points: np.ndarray) -> bytes:
    """A binary PLY file of points (n, 2) or (n, 3), float32 or float64; ValueError for other dimensions."""
    if points.shape[1] not in (2, 3):
        raise ValueError(f"a PLY file holds points in 2 or 3 dimensions, got {points.shape[1]}")
    name, kind = ("double", "<f8") if points.dtype == np.float64 else ("float", "<f4")
    properties = "".join(f"property {name} {axis}\n" for axis in _AXES[: points.shape[1]])
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    return header.encode() + points.astype(kind).tobytes()
