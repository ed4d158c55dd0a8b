"""Clouds in numpy's files, .npy and .npz, read without unpickling and without believing what a header promises."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ddeq_fast.data.formats.reading import check_unpacked, read_bytes

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_array(path: Path) -> np.ndarray:
    """The array (n, d), float16 to float64 or of integers that float64 holds, of a .npy or .npz file.

    Raises ValueError naming the file: damaged, not one array of real numbers (n, d), numbers beyond float64.
    """
    content = read_bytes(path)
    if content[:4] in (b"PK\3\4", b"PK\5\6"):
        content = _member(path, content)
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"format {version} is of named fields")
        shape, fortran, dtype = _HEADERS[version](file)
    except Exception as error:  # of many kinds: the header is parsed as Python
        raise _damaged(path, error) from error
    if dtype.hasobject:
        raise _damaged(path, "objects are not read")
    if len(shape) != 2 or 0 in shape or dtype.kind not in "fiu":
        raise ValueError(
            f"{path} must hold an array (n, d) of real numbers, n and d at least 1, got shape {shape} of {dtype}"
        )
    promised, following = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if promised != following:
        raise _damaged(path, f"its header promises {promised:,} bytes of numbers, {following:,} follow")
    array = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    return _native(path, array)


def npy_bytes(array: np.ndarray) -> bytes:
    """A .npy file of an array."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz_bytes(array: np.ndarray, **beside: Any) -> bytes:
    """A .npz file of an array called points, and of other arrays by their names."""
    buffer = io.BytesIO()
    np.savez(buffer, points=array, **beside)
    return buffer.getvalue()


def _native(path: Path, array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, as float64 if it is wider or of integers."""
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        return array.astype(array.dtype.newbyteorder("="))
    wide = array.astype(np.float64)
    if array.dtype.kind in "iu" and not (np.abs(wide) < 1 << 53).all():
        row = int((np.abs(wide) >= 1 << 53).any(1).argmax())
        raise ValueError(
            f"{path}: point {row} (the first is 0) is beyond 2**53, up to which float64 holds all integers"
        )
    return wide


def _member(path: Path, content: bytes) -> bytes:
    """The one array of an archive, or the one called points, as a .npy file."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    except Exception as error:  # of many kinds: zipfile and zlib raise their own
        raise _damaged(path, error) from error
    chosen = infos.get("points", next(iter(infos.values())) if len(infos) == 1 else None)
    if chosen is None:
        raise ValueError(f"{path} must hold one array, or one called points; it holds {', '.join(infos) or 'none'}")
    check_unpacked(path, min(chosen.compress_size, len(content)), chosen.file_size)
    try:
        return archive.read(chosen)
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: object) -> ValueError:
    return ValueError(f"{path} is damaged, or holds something else than numbers: {error}")
