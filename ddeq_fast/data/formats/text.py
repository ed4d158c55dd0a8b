"""Clouds in text: a line a point."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddeq_fast.data.formats.precision import keeps
from ddeq_fast.data.formats.reading import read_lines
from ddeq_fast.data.formats.table import number, parse_table

_AXES = ("x", "y", "z")
_HINT = (
    "; a line holds a point, its numbers written like -1.5e3, with a decimal point, between white space, commas or "
    "semicolons"
)
_QUOTED = re.compile(r'(?<![^\s,;])"([^"\s,;]*)"(?![^\s,;])')
_TIGHT_COMMA = re.compile(r"\d,\d")
_UNITS = re.compile(r"\[[^\]]*\]|\([^)]*\)")


def read_text(path: Path) -> np.ndarray:
    """The points (n, d), float64, of a text file: one a line, numbers between white space, commas or semicolons.

    A comma or semicolon at the end of a line, and quotes around a number, are allowed. # and // begin comments. Above
    the points may stand their number, alone on its line, and the names of the columns, plain or as a comment. Where
    these name x and y, the points are the columns x, y and, if there is one, z; otherwise every column is a coordinate.

    Raises ValueError naming file and line.
    """
    lines = read_lines(path)
    rows = [_uncommented(line) for line in lines]
    filled = [i for i, row in enumerate(rows) if row]
    head = _head(rows, filled)
    for i in filled[: head.lines]:
        rows[i] = ""
    filled = filled[head.lines :]
    if not filled and head.lines:
        raise ValueError(f"{path} holds {'column names' if head.names else 'a number of points'}, but no points")
    delimiter = _delimiter(rows[filled[0]]) if filled else None
    if delimiter is not None:
        for i in filled:
            if _has_decimal_commas(rows[i]):
                raise ValueError(f"{path}, line {i + 1}: {rows[i][:40]!r} may have decimal commas{_HINT}")
    table = parse_table(_plain(rows, delimiter), path, delimiter=delimiter, comments=None, hint=_HINT)
    if head.promised is not None and head.promised != len(table):
        raise ValueError(f"{path}, line {head.promised_at}: {head.promised} points are promised, {len(table)} follow")
    width = table.shape[1]
    if head.names is not None and len(head.names) != width:
        named = f"line {head.named_at}: {len(head.names)} columns are named"
        raise ValueError(f"{path}, {named}, but line {filled[0] + 1} has {width}")
    names = head.names or _commented_names(lines[: filled[0]], width)
    if not names or not {"x", "y"} <= set(names):
        return table
    axes = [axis for axis in _AXES if axis in names]
    if any(names.count(axis) > 1 for axis in axes):
        raise ValueError(f"{path} names a coordinate twice: {', '.join(names)[:60]}")
    return table[:, [names.index(axis) for axis in axes]]


class _Head(NamedTuple):
    """What stands above the points: column names and a number of points, with their lines, and how many lines it is."""

    names: list[str] | None
    named_at: int
    promised: int | None
    promised_at: int
    lines: int


def _head(rows: Sequence[str], filled: Sequence[int]) -> _Head:
    """The head of a file, of whose rows these are `filled`: names and number, either or both, in any order."""
    names = promised = None
    named_at = promised_at = lines = 0
    for i in filled:
        found = _names(rows[i]) if names is None else None
        if found:
            names, named_at = found, i + 1
        elif promised is None and rows[i].isdecimal() and len(_split(rows[filled[-1]])) > 1:
            promised, promised_at = int(rows[i]), i + 1
        else:
            break
        lines += 1
    return _Head(names, named_at, promised, promised_at, lines)


def text_bytes(array: np.ndarray) -> bytes:
    """A line a point (n, d), float32 or float64, in as many digits as reading needs to give the same back."""
    words = [[f"{value:.9g}" for value in row] for row in array.tolist()]  # nine digits tell float32s apart
    if array.dtype != np.float32 or not keeps(array, np.array(words).astype(np.float64)):
        words = [list(map(repr, row)) for row in array.tolist()]
    return "".join(" ".join(row) + "\n" for row in words).encode()


def _uncommented(line: str) -> str:
    for mark in ("#", "//"):
        if mark in line:
            line = line.split(mark, 1)[0]
    return line.strip()


def _delimiter(line: str) -> str | None:
    return ";" if ";" in line else "," if "," in line else None


def _split(line: str) -> list[str]:
    """The words of a line between whatever delimits them; a delimiter at its end ends the last."""
    delimiter = _delimiter(line)
    words = [word.strip() for word in line.split(delimiter)]
    return words[:-1] if delimiter and not words[-1] else words


def _has_decimal_commas(line: str) -> bool:
    """Whether commas may stand in numbers, as in 1,5; 2,5 or in 1,5, 2,5."""
    if ";" in line:
        return "," in line
    return ", " in line and "." not in line and _TIGHT_COMMA.search(line) is not None


def _plain(rows: Sequence[str], delimiter: str | None) -> list[str]:
    """The rows without quotes around numbers and without a delimiter at the end."""
    rows = [_QUOTED.sub(r"\1", row) if '"' in row else row for row in rows]
    if delimiter is None:
        return rows
    return [row[:-1] if row.endswith(delimiter) and len(row) > 1 else row for row in rows]


def _names(line: str) -> list[str] | None:
    """Names of columns, in small letters and without units, if that is what the line holds."""
    names = [word.strip(" \t\"'").lower() for word in _split(_UNITS.sub("", line))]
    some = names[1:] if names and not names[0] else names  # the first, of an index, may have none
    if not some or any(not name[:1].isalpha() or number(name) is not None for name in some):
        return None
    return names


def _commented_names(lines: Sequence[str], width: int) -> list[str] | None:
    """The names of so many columns, x and y among them, in the last comment that gives them."""
    for line in reversed(lines):
        names = _names(line.strip().lstrip("#/"))
        if names and len(names) == width and {"x", "y"} <= set(names):
            return names
    return None
