"""Vertices of PLY files (Turk 1994), ASCII and binary: the header, and what to read of the body."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddeq_fast.data.formats.ply_body import Element, binary_vertices, text_vertices
from ddeq_fast.data.formats.reading import read_bytes, split_lines, unmarked

# Letters of the struct module, which numpy shares.
_TYPES = {
    **{"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d"},
    **{"int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I"},
    **{"float32": "f", "float64": "d"},
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_AXES = ("x", "y", "z")


def read_ply(path: Path) -> np.ndarray:
    """The vertices (n, d), float64: their properties x and y, and z if there is one, in small letters or capitals.

    In ASCII every record must have a line of its own; blank lines may stand anywhere. Every record must be there, and
    nothing after the last, so that no read is shifted unnoticed.

    Raises ValueError naming the file, and the line where there are lines, if it is damaged or holds no vertices.
    """
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
    if order:
        return binary_vertices(path, content, size, order, elements, places[0], axes)
    return text_vertices(path, split_lines(content[size:]), lines, elements, places[0], axes)


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
