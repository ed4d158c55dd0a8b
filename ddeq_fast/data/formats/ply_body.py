"""Bodies of PLY files: the vertices among records of other kinds, with lists of any length between their numbers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddeq_fast.data.formats.table import number, parse_table


@dataclass
class Element:
    """One kind of record: how many, and its properties by name: a type, or types of a list's length and entries."""

    name: str
    count: int
    properties: dict[str, str | tuple[str, str]] = field(default_factory=dict)

    @property
    def has_lists(self) -> bool:
        return any(isinstance(kind, tuple) for kind in self.properties.values())


def text_vertices(
    path: Path, lines: Sequence[str], header: int, elements: Sequence[Element], place: int, axes: Sequence[str]
) -> np.ndarray:
    """The coordinates (n, d) called `axes` of the element at `place`, from the lines after `header` lines."""
    filled = [i for i, line in enumerate(lines) if line and not line.isspace()]
    counts = [element.count if element.properties else 0 for element in elements]
    if len(filled) != sum(counts):
        promised = ", ".join(f"{element.count} x {element.name}" for element in elements)
        last, fault = header + len(lines), "truncated"
        if len(filled) > sum(counts):
            last, fault = header + 1 + filled[sum(counts)], "lines are left over, or one record has several"
        raise ValueError(f"{path}, line {last}: {fault}: its header promises {promised}, {len(filled)} lines follow")
    start = 0
    for element, count in zip(elements[:place], counts, strict=False):
        for i in filled[start : start + count]:
            _words(path, header + 1 + i, lines[i], element)
        start += count
    vertex, mine = elements[place], filled[start : start + counts[place]]
    names = list(vertex.properties)
    if vertex.has_lists:
        rows = []
        for i in mine:
            words = _words(path, header + 1 + i, lines[i], vertex)
            rows.append(" ".join(words[name] for name in axes))
        # A line a row, so that what is not finite is named with its line.
        spread = [""] * (mine[-1] + 1)
        for i, row in zip(mine, rows, strict=True):
            spread[i] = row
        return parse_table(spread, path, first=header + 1, comments=None)
    table = parse_table(lines[mine[0] : mine[-1] + 1], path, first=header + 1 + mine[0], comments=None)
    if table.shape[1] != len(names):
        raise ValueError(
            f"{path}, line {header + 1 + mine[0]}: expected {vertex.count} lines of {len(names)} values, got "
            f"{table.shape[0]} of {table.shape[1]}"
        )
    return table[:, [names.index(axis) for axis in axes]]


def _words(path: Path, line_number: int, line: str, element: Element) -> dict[str, str]:
    """The scalars of a line by name; raises ValueError unless the line holds just this record."""
    words, place, scalars = line.split(), 0, {}
    for name, kind in element.properties.items():
        word = words[place] if place < len(words) else ""
        length = 0
        if isinstance(kind, tuple):
            if not (word.isascii() and word.isdecimal()):
                raise ValueError(f"{path}, line {line_number}: {word!r} is no length of the list {name}")
            length = int(word)
        else:
            scalars[name] = word
        place += 1 + length
    if place != len(words):
        raise ValueError(
            f"{path}, line {line_number}: {len(words)} values, but this record of {element.name} has {place}"
        )
    for word in words:
        if number(word) is None:
            raise ValueError(f"{path}, line {line_number}: {word!r} is no number")
    return scalars


def binary_vertices(
    path: Path, content: bytes, size: int, order: str, elements: Sequence[Element], place: int, axes: Sequence[str]
) -> np.ndarray:
    """The coordinates (n, d), float64, called `axes` of the element at `place`, from the bytes after `size`."""
    found = None
    for i, element in enumerate(elements):
        columns, size, held = _records(path, content, size, order, element, axes if i == place else ())
        if held < element.count:
            plural = "vertices" if i == place else f"records of {element.name}"
            raise ValueError(f"{path} is truncated: its header promises {element.count} {plural}, it holds {held}")
        if i == place:
            found = columns
    if size != len(content):
        raise ValueError(f"{path} has {len(content) - size} bytes after its end")
    return found


def _records(path, content, start, order, element, axes) -> tuple[np.ndarray, int, int]:
    """(coordinates, where the element ends, how many records are there); a list as long in each record is fast."""
    if not element.properties or not element.count:
        return np.empty((0, len(axes))), start, element.count
    lengths = _lengths(path, content, start, order, element)
    if lengths is not None:
        fields = []
        for name, kind in element.properties.items():
            if isinstance(kind, tuple):
                fields += [(f"length {name}", order + kind[0]), (f"list {name}", order + kind[1], (lengths[name],))]
            else:
                fields.append((f"scalar {name}", order + kind))
        kind = np.dtype(fields)
        held = min(element.count, (len(content) - start) // kind.itemsize)
        records = np.frombuffer(content, kind, held, start)
        if all((records[f"length {name}"] == length).all() for name, length in lengths.items()) and (
            held == element.count or not lengths
        ):
            columns = [records[f"scalar {axis}"].astype(np.float64) for axis in axes]
            return np.stack(columns, 1) if axes else None, start + held * kind.itemsize, held
    return _walk(path, content, start, order, element, axes)


def _lengths(path, content, start, order, element) -> dict[str, int] | None:
    """The lengths of the lists in the first record; None if it is not whole."""
    lengths = {}
    for name, kind in element.properties.items():
        if isinstance(kind, tuple):
            head = struct.Struct(order + kind[0])
            if start + head.size > len(content):
                return None
            lengths[name] = _length(path, head.unpack_from(content, start)[0], name)
            start += head.size + lengths[name] * struct.calcsize(order + kind[1])
        else:
            start += struct.calcsize(order + kind)
    return lengths if start <= len(content) else None


def _walk(path, content, start, order, element, axes) -> tuple[np.ndarray, int, int]:
    steps = []
    for name, kind in element.properties.items():
        if isinstance(kind, tuple):
            steps.append((name, struct.Struct(order + kind[0]), struct.calcsize(order + kind[1])))
        else:
            steps.append((name, struct.Struct(order + kind), None))
    found, held = [], 0
    for _ in range(element.count):
        values = {}
        for name, head, entry in steps:
            if start + head.size > len(content):
                return np.array(found), start, held
            value = head.unpack_from(content, start)[0]
            start += head.size
            if entry is None:
                values[name] = value
            else:
                start += _length(path, value, name) * entry
        if start > len(content):
            return np.array(found), start, held
        held += 1
        if axes:
            found.append([values[axis] for axis in axes])
    return np.array(found, np.float64), start, held


def _length(path, value: int, name: str) -> int:
    if value < 0:
        raise ValueError(f"{path}: the list {name} has a length of {value}")
    return value
