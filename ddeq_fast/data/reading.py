"""Reading files strictly: where a data set lies, bytes, tables of numbers. Errors name file and line."""

from __future__ import annotations

import gzip
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

VARIABLE = "DDEQ_FAST_DATA"
_LARGEST = np.finfo(np.float32).max  # clouds are float32 in the end


def data_folder(name: str, root: str | Path | None, expected: str) -> Path:
    """The folder of a data set: `root`, or `name` inside the folder that the environment variable DDEQ_FAST_DATA names.

    Raises FileNotFoundError saying where it looked and what is `expected` there.
    """
    if root is None and not os.environ.get(VARIABLE):
        raise FileNotFoundError(
            f"{name}: no folder given: pass root, or set {VARIABLE} to a folder that holds {name}/; expected {expected}"
        )
    folder = Path(os.environ[VARIABLE], name) if root is None else Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: there is no folder {folder}; expected {expected}")
    return folder


def read_bytes(path: Path) -> bytes:
    """What a file holds, unpacked if its name ends in .gz.

    Raises FileNotFoundError if there is no such file, ValueError if it is empty or no whole gzip file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no whole gzip file: {error}") from error
    if not content:
        raise ValueError(f"{path} is empty")
    return content


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; bytes that are no text become a character that no number has."""
    return split_lines(read_bytes(path))


def split_lines(content: bytes) -> list[str]:
    """Lines without their ends; a last one that is empty is left out."""
    lines = content.decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


def parse_table(
    lines: Sequence[str],
    path: Path,
    *,
    first: int = 1,
    dtype: type = np.float64,
    delimiter: str | None = None,
    comments: str | None = "#",
) -> np.ndarray:
    """Numbers (rows, columns) of lines that hold equally many each; blank lines and comments are passed over.

    Args:
        lines: of the file `path`, from line number `first` on, not empty.
        dtype: numpy's type of the numbers.
        delimiter: between the numbers; any white space if None.

    Raises:
        ValueError: naming file and line: something is no number, or not finite in float32, or lines differ in length.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy warns of no data, and of integers written as floats
            values = np.loadtxt(lines, dtype, delimiter=delimiter, comments=comments, ndmin=2)
        if (np.abs(values) <= _LARGEST).all():  # NaN is not, either
            return values
    except (ValueError, OverflowError, UserWarning, DeprecationWarning) as error:
        reason = error
    else:
        reason = "a number is not finite"
    raise ValueError(_fault(lines, path, first, dtype, delimiter, comments) or f"{path}: {reason}")


def _fault(lines, path, first, dtype, delimiter, comments) -> str | None:
    """What is wrong with the first line that is: found again slowly, so that good files are read fast."""
    expected = None
    for number, line in enumerate(lines, start=first):
        words = (line.split(comments)[0] if comments else line).strip()
        if not words:
            continue
        words = words.split(delimiter)
        expected = expected or (len(words), number)
        for word in words:
            try:
                value = np.array(word.strip()).astype(dtype)
            except (ValueError, OverflowError):
                kind = "integer" if np.issubdtype(dtype, np.integer) else "number"
                return f"{path}, line {number}: {word.strip()!r} is no {kind}" + _range(dtype)
            if not abs(value) <= _LARGEST:
                within = " in float32" if np.isfinite(value) else ""
                return f"{path}, line {number}: {word.strip()!r} is not finite{within}"
        if len(words) != expected[0]:
            return f"{path}, line {number}: {len(words)} values, but line {expected[1]} has {expected[0]}"
    return None if expected else f"{path} holds no numbers" + (f" from line {first} on" if first > 1 else "")


def _range(dtype) -> str:
    return f" from {np.iinfo(dtype).min} to {np.iinfo(dtype).max}" if np.issubdtype(dtype, np.integer) else ""
