"""OFF meshes (Geomview's object file format), read strictly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddeq_fast.data.formats.mesh import Mesh, cut
from ddeq_fast.data.formats.reading import read_lines
from ddeq_fast.data.formats.table import parse_table

# Texture coordinates, colours and normals behind the coordinates; a fourth coordinate, n coordinates. The counts may
# be fused to the word.
_HEAD = re.compile(r"(ST)?(C)?(N)?(4)?(n)?OFF(\d*)")
_DIALECTS = "understood are OFF, COFF, NOFF, CNOFF and these after ST, as text, in three dimensions"


def read_vertices(path: str | Path) -> np.ndarray:
    """The vertices (n, 3), float64, of an OFF file; checks that its faces are all there, but does not read them.

    The counts may stand on the line of "OFF" or below it; comments and blank lines may stand anywhere. Normals, colours
    and texture coordinates behind the coordinates (COFF, NOFF, CNOFF, STOFF; colours in plain OFF, too) are left out.

    Raises:
        FileNotFoundError, ValueError: naming file and line: no OFF file or of another dialect, no vertices, truncated,
        more lines than promised, not three finite coordinates a vertex.
    """
    return _Reader(Path(path)).vertices()


def read_mesh(path: str | Path) -> Mesh:
    """The mesh of an OFF file; polygons are cut into triangles around their first corner, points and edges left out.

    Raises:
        FileNotFoundError, ValueError: as `read_vertices`, and naming the line of a face that is none.
    """
    reader = _Reader(Path(path))
    vertices = reader.vertices()
    return Mesh(vertices, reader.triangles(len(vertices)))


class _Reader:
    """The lines of one file, with the numbers of those that count."""

    def __init__(self, path: Path):
        self.path, self.lines = path, read_lines(path)
        counting = [i for i, line in enumerate(self.lines, start=1) if line.strip() and line.lstrip()[0] != "#"]
        if not counting:
            raise ValueError(f"{path} holds nothing but comments")
        head = self._words(counting[0])
        kind = _HEAD.fullmatch(head[0])
        if kind is None or kind[4] or kind[5] or "BINARY" in map(str.upper, head):
            got = " ".join(head)[:20]
            raise ValueError(f"{path}, line {counting[0]}: expected OFF, got {got!r}; {_DIALECTS}")
        self.widths = _widths(*map(bool, kind.groups()[:3]))
        head = [word for word in (kind[6], *head[1:]) if word]
        place = counting[0]
        if not head:  # the counts have a line of their own
            if len(counting) == 1:
                raise ValueError(f"{path} is truncated: it ends after OFF")
            place = counting[1]
            head = self._words(place)
        self.counts = self._counts(head, place)
        self.body = counting[1 + (place != counting[0]) :]
        if len(self.body) < sum(self.counts):
            last = self.body[-1] if self.body else place
            raise ValueError(
                f"{path}, line {last}: truncated: its header promises {self.counts[0]} vertices and {self.counts[1]} "
                f"faces, {len(self.body)} lines follow"
            )
        if len(self.body) > sum(self.counts):
            raise ValueError(
                f"{path}, line {self.body[sum(self.counts)]}: its header promises {self.counts[0]} vertices and "
                f"{self.counts[1]} faces, {len(self.body)} lines follow"
            )

    def _words(self, number: int) -> list[str]:
        return self.lines[number - 1].split("#")[0].split()

    def _counts(self, words: Sequence[str], number: int) -> tuple[int, int]:
        if len(words) not in (2, 3) or not all(word.isdecimal() for word in words):
            raise ValueError(
                f"{self.path}, line {number}: expected numbers of vertices, faces and edges, got {' '.join(words)!r}"
            )
        if int(words[0]) == 0:
            raise ValueError(f"{self.path}, line {number}: the mesh has no vertices")
        return int(words[0]), int(words[1])

    def vertices(self) -> np.ndarray:
        """(n, 3), float64."""
        number = self.counts[0]
        first, last = self.body[0], self.body[number - 1]
        table = parse_table(self.lines[first - 1 : last], self.path, first=first)
        if table.shape[1] not in self.widths:
            also = f", with what its header names {' or '.join(map(str, self.widths))} values" * (self.widths[0] > 3)
            raise ValueError(f"{self.path}, line {first}: a vertex has 3 coordinates{also}, got {table.shape[1]}")
        if self.counts[1]:  # a vertex in the place of the first face: the counts are wrong
            self._corners(self.body[number], number)
        return table[:, :3]

    def triangles(self, vertices: int) -> np.ndarray:
        """(m, 3), int64, of faces that name so many vertices."""
        body = self.body[self.counts[0] : sum(self.counts)]
        if not body:
            return np.empty((0, 3), np.int64)
        try:
            table = parse_table(self.lines[body[0] - 1 : body[-1]], self.path, dtype=np.int64)
        except ValueError:  # polygons of several sizes, or colours behind the corners
            table = np.empty((0, 0))
        size, corners = table.shape[1] - 1, table[:, 1:]
        if size > 0 and (table[:, 0] == size).all() and corners.min() >= 0 and corners.max() < vertices:
            return cut(corners)
        return cut([self._corners(number, vertices) for number in body])

    def _corners(self, number: int, vertices: int) -> list[int]:
        words = self._words(number)
        size = int(words[0]) if words[0].isdecimal() else 0
        named = words[1 : 1 + size]
        if not 0 < size == len(named) or not all(word.isdecimal() and int(word) < vertices for word in named):
            raise ValueError(
                f"{self.path}, line {number}: expected a face: its size, that many vertices from 0 to {vertices - 1}; "
                f"got {' '.join(words)[:60]!r}"
            )
        return [int(word) for word in named]


def _widths(texture: bool, colour: bool, normal: bool) -> tuple[int, ...]:
    """How many values a vertex may have; colours are three or four, and common in plain OFF, too."""
    others = 3 + 3 * normal + 2 * texture
    return (others + 3, others + 4) if colour else (3, 6, 7) if others == 3 else (others,)
