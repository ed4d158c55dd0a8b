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
    if _is_archive(content):
        archive, infos = _members(path, content)
        chosen = infos.get("points", next(iter(infos.values())) if len(infos) == 1 else None)
        if chosen is None:
            raise ValueError(f"{path} must hold one array, or one called points; it holds {', '.join(infos) or 'none'}")
        content = _member(path, len(content), archive, chosen)
    array = _parse(path, content)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} must hold an array (n, d) of real numbers, n and d at least 1, got shape {array.shape} of "
            f"{array.dtype}"
        )
    return _native(path, array)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz file by name, of numbers or texts; errors name the file.

    Raises ValueError: no archive of arrays, damaged, or with objects in it.
    """
    content = read_bytes(path)
    if not _is_archive(content):
        raise ValueError(f"{path} is no archive of arrays (.npz)")
    archive, infos = _members(path, content)
    return {name: _parse(path, _member(path, len(content), archive, info)) for name, info in infos.items()}


def _parse(path: Path, content: bytes) -> np.ndarray:
    """The array of a .npy file."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"format {version} is of named fields")
        shape, fortran, dtype = _HEADERS[version](file)
    except Exception as error:  # of many kinds: the header is parsed as Python
        raise _damaged(path, error) from error
    if dtype.hasobject or not dtype.itemsize:
        raise _damaged(path, "objects and empty texts are not read")
    promised, following = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if promised != following:
        raise _damaged(path, f"its header promises {promised:,} bytes of numbers, {following:,} follow")
    if not promised:
        return np.empty([min(size, 1 << 20) for size in shape], dtype)  # the product of the others may overflow
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


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


def _is_archive(content: bytes) -> bool:
    return content[:4] in (b"PK\3\4", b"PK\5\6")


def _members(path: Path, content: bytes) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """(archive, its arrays by name)."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        return archive, {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    except Exception as error:  # of many kinds: zipfile and zlib raise their own
        raise _damaged(path, error) from error


def _member(path: Path, size: int, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """One array of an archive of that size as a .npy file."""
    check_unpacked(path, min(info.compress_size, size), info.file_size)
    try:
        return archive.read(info)
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: object) -> ValueError:
    return ValueError(f"{path} is damaged, or holds something else than numbers: {error}")
