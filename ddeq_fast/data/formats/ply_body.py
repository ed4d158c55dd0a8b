"""Bodies of PLY files: the vertices among records of other kinds, with lists of any length between their numbers."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
        """Whether a property is a list."""
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
    body = _Body(path, content, order)
    vertices = np.empty((0, len(axes)))
    for i, element in enumerate(elements):
        records = body.records(size, element, axes if i == place else ())
        if records.number < element.count:
            plural = "vertices" if i == place else f"records of {element.name}"
            raise ValueError(
                f"{path} is truncated: its header promises {element.count} {plural}, it holds {records.number}"
            )
        if i == place:
            vertices = records.coordinates
        size = records.end
    if size != len(content):
        raise ValueError(f"{path} has {len(content) - size} bytes after its end")
    return vertices


class _Records(NamedTuple):
    """The whole records of an element: coordinates (number, d), float64, how many, and where they end."""

    coordinates: np.ndarray
    number: int
    end: int


@dataclass(frozen=True)
class _Body:
    """The bytes of a file and the order of those of a number, "<" or ">"."""

    path: Path
    content: bytes
    order: str

    def records(self, start: int, element: Element, axes: Sequence[str]) -> _Records:
        """What there is of an element whose records begin at `start`."""
        if not element.properties or not element.count:
            return _Records(np.empty((0, len(axes))), element.count, start)
        lengths = self._first_lengths(start, element)
        alike = None if lengths is None else self._alike(start, element, axes, lengths)
        return self._walk(start, element, axes) if alike is None else alike

    def _alike(self, start: int, element: Element, axes: Sequence[str], lengths: Mapping[str, int]) -> _Records | None:
        """All records at once, if every list is as long in each of them; None if not."""
        fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
        for name, kind in element.properties.items():
            if isinstance(kind, tuple):
                fields.append((f"length {name}", self.order + kind[0]))
                fields.append((f"list {name}", self.order + kind[1], (lengths[name],)))
            else:
                fields.append((f"scalar {name}", self.order + kind))
        record = np.dtype(fields)
        count = min(element.count, (len(self.content) - start) // record.itemsize)
        table = np.frombuffer(self.content, record, count, start)
        if lengths and count < element.count:
            return None
        if not all((table[f"length {name}"] == length).all() for name, length in lengths.items()):
            return None
        coordinates = np.empty((count, len(axes)))
        for column, axis in enumerate(axes):
            coordinates[:, column] = table[f"scalar {axis}"]
        return _Records(coordinates, count, start + count * record.itemsize)

    def _first_lengths(self, start: int, element: Element) -> dict[str, int] | None:
        """The lengths of the lists in the first record; None if it is not whole."""
        lengths = {}
        for name, kind in element.properties.items():
            if isinstance(kind, tuple):
                head = struct.Struct(self.order + kind[0])
                if start + head.size > len(self.content):
                    return None
                lengths[name] = self._length(head.unpack_from(self.content, start)[0], name)
                start += head.size + lengths[name] * struct.calcsize(self.order + kind[1])
            else:
                start += struct.calcsize(self.order + kind)
        return lengths if start <= len(self.content) else None

    def _walk(self, start: int, element: Element, axes: Sequence[str]) -> _Records:
        """The records one by one, up to the first that is not whole."""
        heads, entries = {}, {}  # a list's head is its length, entries the bytes of each of its numbers
        for name, kind in element.properties.items():
            heads[name] = struct.Struct(self.order + (kind[0] if isinstance(kind, tuple) else kind))
            if isinstance(kind, tuple):
                entries[name] = struct.calcsize(self.order + kind[1])
        found: list[list[float]] = []
        count = 0
        while count < element.count:
            end, values = start, {}
            for name, head in heads.items():
                if end + head.size > len(self.content):
                    return _Records(_rows(found, axes), count, start)
                values[name] = head.unpack_from(self.content, end)[0]
                end += head.size
                if name in entries:
                    end += self._length(values[name], name) * entries[name]
            if end > len(self.content):
                break
            found.append([values[axis] for axis in axes])
            start, count = end, count + 1
        return _Records(_rows(found, axes), count, start)

    def _length(self, value: int, name: str) -> int:
        if value < 0:
            raise ValueError(f"{self.path}: the list {name} has a length of {value}")
        return value


def _rows(rows: Sequence[Sequence[float]], axes: Sequence[str]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(len(rows), len(axes))
