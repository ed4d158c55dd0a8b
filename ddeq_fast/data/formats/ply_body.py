"""Bodies of PLY files: vertices and faces among records of other kinds, with lists of any length between numbers."""

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


class Wanted(NamedTuple):
    """What is read of a body: coordinates called `axes` of the element at `vertex`, and the list `corners` of that at
    `face`, None for no faces."""

    vertex: int
    axes: Sequence[str]
    face: int | None = None
    corners: str = ""


class Body(NamedTuple):
    """coordinates: (n, d) float64; polygons: the list of each face, as an array (m, size) if all are of one size."""

    coordinates: np.ndarray
    polygons: np.ndarray | list[list[int]]


def text_body(path: Path, lines: Sequence[str], header: int, elements: Sequence[Element], wanted: Wanted) -> Body:
    """What is wanted of the lines after `header` lines."""
    place, axes = wanted.vertex, wanted.axes
    filled = [i for i, line in enumerate(lines) if line and not line.isspace()]
    counts = [element.count if element.properties else 0 for element in elements]
    if len(filled) != sum(counts):
        promised = ", ".join(f"{element.count} x {element.name}" for element in elements)
        last, fault = header + len(lines), "truncated"
        if len(filled) > sum(counts):
            last, fault = header + 1 + filled[sum(counts)], "lines are left over, or one record has several"
        raise ValueError(f"{path}, line {last}: {fault}: its header promises {promised}, {len(filled)} lines follow")
    start, mine, polygons = 0, filled, []
    for i, (element, count) in enumerate(zip(elements, counts, strict=True)):
        own, start = filled[start : start + count], start + count
        if i == place:
            mine = own
        elif i < place or i == wanted.face:
            records = [_words(path, header + 1 + j, lines[j], element) for j in own]
            if i == wanted.face:
                corners = [record[wanted.corners].split() for record in records]
                polygons = [_integers(path, header + 1 + j, words) for j, words in zip(own, corners, strict=True)]
    return Body(_text_vertices(path, lines, header, elements[place], mine, axes), polygons)


def _integers(path: Path, line_number: int, words: Sequence[str]) -> list[int]:
    """The corners of a face."""
    if not all(word.isascii() and word.isdecimal() and len(word) < 19 for word in words):
        raise ValueError(
            f"{path}, line {line_number}: corners of a face are numbers of vertices, got {' '.join(words)!r}"
        )
    return [int(word) for word in words]


def _text_vertices(
    path: Path, lines: Sequence[str], header: int, vertex: Element, mine: Sequence[int], axes: Sequence[str]
) -> np.ndarray:
    """The coordinates (n, d) called `axes` from the lines at the indices `mine`."""
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
    """Scalars of a line by name, and lists without their lengths; ValueError unless it holds just this record."""
    words, place, found = line.split(), 0, {}
    for name, kind in element.properties.items():
        word = words[place] if place < len(words) else ""
        length = 0
        if isinstance(kind, tuple):
            if not (word.isascii() and word.isdecimal()):
                raise ValueError(f"{path}, line {line_number}: {word!r} is no length of the list {name}")
            length = int(word)
            found[name] = " ".join(words[place + 1 : place + 1 + length])
        else:
            found[name] = word
        place += 1 + length
    if place != len(words):
        raise ValueError(
            f"{path}, line {line_number}: {len(words)} values, but this record of {element.name} has {place}"
        )
    for word in words:
        if number(word) is None:
            raise ValueError(f"{path}, line {line_number}: {word!r} is no number")
    return found


def binary_body(path: Path, content: bytes, size: int, order: str, elements: Sequence[Element], wanted: Wanted) -> Body:
    """What is wanted of the bytes after `size`."""
    body = _Body(path, content, order)
    vertices: np.ndarray = np.empty((0, len(wanted.axes)))
    polygons: np.ndarray | list[list[int]] = []
    for i, element in enumerate(elements):
        axes, corners = wanted.axes if i == wanted.vertex else (), wanted.corners if i == wanted.face else None
        records = body.records(size, element, axes, corners)
        if records.number < element.count:
            plural = "vertices" if i == wanted.vertex else f"records of {element.name}"
            raise ValueError(
                f"{path} is truncated: its header promises {element.count} {plural}, it holds {records.number}"
            )
        if i == wanted.vertex:
            vertices = records.coordinates
        elif i == wanted.face:
            polygons = records.lists
        size = records.end
    if size != len(content):
        raise ValueError(f"{path} has {len(content) - size} bytes after its end")
    return Body(vertices, polygons)


class _Records(NamedTuple):
    """The whole records of an element: coordinates (number, d), float64, one list of each, how many, where they end."""

    coordinates: np.ndarray
    lists: np.ndarray | list[list[int]]
    number: int
    end: int


@dataclass(frozen=True)
class _Body:
    """The bytes of a file and the order of those of a number, "<" or ">"."""

    path: Path
    content: bytes
    order: str

    def records(self, start: int, element: Element, axes: Sequence[str], wanted: str | None) -> _Records:
        """What there is of an element whose records begin at `start`; `wanted` names the list that is kept."""
        if not element.properties or not element.count:
            return _Records(np.empty((0, len(axes))), [], element.count, start)
        lengths = self._first_lengths(start, element)
        alike = None if lengths is None else self._alike(start, element, axes, wanted, lengths)
        return self._walk(start, element, axes, wanted) if alike is None else alike

    def _alike(
        self, start: int, element: Element, axes: Sequence[str], wanted: str | None, lengths: Mapping[str, int]
    ) -> _Records | None:
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
        lists: np.ndarray | list[list[int]] = [] if wanted is None else table[f"list {wanted}"].astype(np.int64)
        return _Records(coordinates, lists, count, start + count * record.itemsize)

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

    def _walk(self, start: int, element: Element, axes: Sequence[str], wanted: str | None) -> _Records:
        """The records one by one, up to the first that is not whole."""
        heads, entries = {}, {}  # a list's head is its length, entries the type of its numbers and the bytes of each
        for name, kind in element.properties.items():
            heads[name] = struct.Struct(self.order + (kind[0] if isinstance(kind, tuple) else kind))
            if isinstance(kind, tuple):
                entries[name] = kind[1], struct.calcsize(self.order + kind[1])
        found: list[list[float]] = []
        lists: list[list[int]] = []
        for _ in range(element.count):
            end, values, kept = start, {}, 0
            for name, head in heads.items():
                if end + head.size > len(self.content):
                    return _Records(_rows(found, axes), lists, len(found), start)
                values[name] = head.unpack_from(self.content, end)[0]
                end += head.size
                if name == wanted:
                    kept = end
                if name in entries:
                    end += self._length(values[name], name) * entries[name][1]
            if end > len(self.content):
                break
            found.append([values[axis] for axis in axes])
            if wanted is not None:
                form = f"{self.order}{values[wanted]}{entries[wanted][0]}"
                lists.append(list(struct.unpack_from(form, self.content, kept)))
            start = end
        return _Records(_rows(found, axes), lists, len(found), start)

    def _length(self, value: int, name: str) -> int:
        if value < 0:
            raise ValueError(f"{self.path}: the list {name} has a length of {value}")
        return value


def _rows(rows: Sequence[Sequence[float]], axes: Sequence[str]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(len(rows), len(axes))
