"""Tables of numbers in text, read strictly: errors name file and line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_LARGEST = float(np.finfo(np.float32).max)  # clouds of larger numbers would not be finite in most computations
_CHUNK = 4096


def number(word: str) -> float | None:
    """The number that a word is, None if it is none: what `parse_table` reads."""
    try:
        return float(word) if "_" not in word and word.isascii() else None
    except ValueError:
        return None


def parse_table(
    lines: Sequence[str],
    path: Path,
    *,
    first: int = 1,
    dtype: type = np.float64,
    delimiter: str | None = None,
    comments: str | None = "#",
    hint: str = "",
) -> np.ndarray:
    """Numbers (rows, columns) of lines that hold equally many each; blank lines and comments are passed over.

    Args:
        lines: of the file `path`, from line number `first` on.
        dtype: float64, or numpy's type of integers.
        delimiter: between the numbers; any white space if None.
        hint: what to say of something that is no number.

    Raises:
        ValueError: naming file and line: something is no number, or not finite in float32, or lines differ in length.
    """
    rows = [line.split(comments)[0] for line in lines] if comments else lines
    rows = [row for row in rows if row and not row.isspace()]
    reason = "no numbers"
    try:
        # Integers by way of floats, since numpy only warns of fractions, and warnings are the whole program's.
        size = _CHUNK if np.issubdtype(dtype, np.integer) else max(1, len(rows))
        parts = [_part(rows[i : i + size], dtype, delimiter) for i in range(0, len(rows), size)]
        if rows:
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
    except (ValueError, OverflowError) as error:
        reason = str(error)
    raise ValueError(_fault(lines, path, first, dtype, delimiter, comments, hint) or f"{path}: {reason}")


def _part(rows: Sequence[str], dtype: type, delimiter: str | None) -> np.ndarray:
    values = np.loadtxt(rows, np.float64, delimiter=delimiter, comments=None, ndmin=2)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        whole = (values == np.floor(values)) & (values >= limits.min) & (values <= limits.max)
        if not (whole & (np.abs(values) <= 1 << 53)).all():  # of larger ones, floats do not hold all
            raise ValueError("not all are integers")
        return values.astype(dtype)
    if not (np.abs(values) <= _LARGEST).all():  # NaN is not, either
        raise ValueError("a number is not finite")
    return values


def _fault(
    lines: Sequence[str], path: Path, first: int, dtype: type, delimiter: str | None, comments: str | None, hint: str
) -> str | None:
    """What is wrong with the first line that is: found again slowly, so that good files are read fast."""
    expected: tuple[int, int] | None = None  # values, and the line that has them
    for place, line in enumerate(lines, start=first):
        text = (line.split(comments)[0] if comments else line).strip()
        if not text:
            continue
        words = [word.strip() for word in text.split(delimiter)]
        expected = expected or (len(words), place)
        for word in words:
            fault = _integer_fault(word, dtype) if np.issubdtype(dtype, np.integer) else _float_fault(word)
            if fault is not None:
                return f"{path}, line {place}: {word!r} is {fault[0]}" + hint * fault[1]
        if len(words) != expected[0]:
            return f"{path}, line {place}: {len(words)} values, but line {expected[1]} has {expected[0]}"
    return None if expected else f"{path} holds no numbers" + (f" from line {first} on" if first > 1 else "")


def _integer_fault(word: str, dtype: type) -> tuple[str, bool] | None:
    """What a word is if it is no integer of this type, and whether it may be badly written; None if it is one."""
    value, limits = number(word), np.iinfo(dtype)
    if value is not None and value.is_integer() and limits.min <= value <= limits.max:
        return None
    return f"no integer from {limits.min} to {limits.max}", True


def _float_fault(word: str) -> tuple[str, bool] | None:
    """The same for a number that is finite in float32."""
    value = number(word)
    if value is None:
        return "no number", True
    if abs(value) <= _LARGEST:
        return None
    return "not finite" + (" in float32" if any(letter.isdigit() for letter in word) else ""), False
