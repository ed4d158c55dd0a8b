"""Vertices of PLY files (Turk 1994), ASCII and binary."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddeq_fast.data.reading import parse_table, read_bytes, split_lines

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_AXES = ("x", "y", "z")


@dataclass
class _Element:
    """One kind of record: how many, and the numpy types of its properties by name; None for a list."""

    name: str
    count: int
    properties: dict[str, str | None] = field(default_factory=dict)

    @property
    def has_lists(self) -> bool:
        return None in self.properties.values()


def read_ply(path: Path) -> np.ndarray:
    """The vertices (n, d), float64: their properties x and y, and z if there is one.

    Raises ValueError naming the file, and the line where there are lines, if it is damaged or holds no vertices.
    """
    content = read_bytes(path)
    order, elements, size, lines = _header(path, content)
    place = next((i for i, element in enumerate(elements) if element.name == "vertex"), None)
    vertex = elements[place] if place is not None else _Element("vertex", 0)
    axes = [axis for axis in _AXES if axis in vertex.properties]
    if not vertex.count or axes[:2] != ["x", "y"]:
        raise ValueError(f"{path}: its header names no vertices with x and y")
    if vertex.has_lists or (order and any(element.has_lists for element in elements[:place])):
        raise ValueError(f"{path}: lists inside or before the vertices are not supported")
    if order:
        return _binary(path, content, size, order, elements[:place], vertex, axes)
    body = split_lines(content[size:])
    if len(body) < sum(element.count for element in elements):
        promised = ", ".join(f"{element.count} x {element.name}" for element in elements)
        raise ValueError(
            f"{path}, line {lines + len(body)}: truncated: its header promises {promised}, {len(body)} lines follow"
        )
    start = sum(element.count for element in elements[:place])
    table = parse_table(body[start : start + vertex.count], path, first=lines + 1 + start, comments=None)
    if table.shape != (vertex.count, len(vertex.properties)):
        number, width = vertex.count, len(vertex.properties)
        raise ValueError(
            f"{path}, line {lines + 1 + start}: expected {number} lines of {width} values, got {table.shape[0]} of "
            f"{table.shape[1]}"
        )
    return table[:, [list(vertex.properties).index(axis) for axis in axes]]


def _binary(path, content, size, order, before, vertex, axes) -> np.ndarray:
    kinds = [np.dtype([(name, order + kind) for name, kind in e.properties.items()]) for e in (*before, vertex)]
    start = size + sum(element.count * kind.itemsize for element, kind in zip(before, kinds, strict=False))
    held = max(0, len(content) - start) // kinds[-1].itemsize
    if held < vertex.count:
        raise ValueError(f"{path} is truncated: its header promises {vertex.count} vertices, it holds {held}")
    records = np.frombuffer(content, kinds[-1], vertex.count, start)
    return np.stack([records[axis].astype(np.float64) for axis in axes], 1)


def _header(path: Path, content: bytes) -> tuple[str, list[_Element], int, int]:
    """(byte order, "" for text; elements; bytes and lines of the header)."""
    order, elements, start, number = None, [], 0, 0
    while (end := content.find(b"\n", start)) >= 0:
        words = content[start:end].decode("ascii", errors="replace").split()
        start, number = end + 1, number + 1
        try:
            match words:
                case _ if number == 1:
                    if words != ["ply"]:
                        raise KeyError
                case ["comment" | "obj_info", *_] | []:
                    pass
                case ["format", name, "1.0"]:
                    order = _ORDERS[name]
                case ["element", name, count] if count.isdecimal():
                    elements.append(_Element(name, int(count)))
                case ["property", *kind, name] if name not in elements[-1].properties:
                    elements[-1].properties[name] = None if kind[0] == "list" else _TYPES[" ".join(kind)]
                case ["end_header"] if order is not None:
                    return order, elements, start, number
                case _:
                    raise KeyError
        except (KeyError, ValueError, IndexError):
            line = " ".join(words)[:40]
            raise ValueError(f"{path}, line {number}: {line!r} does not belong in the header of a PLY file") from None
    raise ValueError(f"{path}, line {number + 1}: the header of a PLY file ends with end_header, this one does not")


def ply_bytes(points: np.ndarray) -> bytes:
    """A binary PLY file of points (n, 2) or (n, 3), float32."""
    properties = "".join(f"property float {axis}\n" for axis in _AXES[: points.shape[1]])
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    return header.encode() + points.astype("<f4").tobytes()
