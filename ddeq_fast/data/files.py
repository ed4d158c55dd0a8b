"""One cloud a file: `load_points` and `write_points`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddeq_fast.data.formats.arrays import read_array
from ddeq_fast.data.formats.off import read_vertices
from ddeq_fast.data.formats.ply import ply_bytes, read_ply
from ddeq_fast.data.formats.text import read_text
from ddeq_fast.utils.files import write_atomically
from ddeq_fast.utils.validation import check_cloud

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
# Share of a cloud's extent by which rounding may move a point: 17 times as far from the origin as it is wide.
_MOST_MOVED = 1e-6


def load_points(path: str | Path, dtype: torch.dtype | None = None) -> Tensor:
    """The cloud (n, d) of a file; its name says of which format it is.

    * .npy: an array (n, d) of numbers; .npz: one such array, or the one called "points" among several;
    * .ply: the vertices, x and y and, if present, z; ASCII (a line a record) or binary;
    * .off: the vertices of the mesh; OFF, COFF, NOFF, CNOFF and these after ST, as text;
    * .xyz, .txt, .csv: a line a point, numbers between white space, commas or semicolons; comments after # or //; on
      top their number and a line of column names, plain or as a comment. Where these name x and y, those
      columns and z are taken, and others left out; otherwise every column is a coordinate.

    Text is UTF-8, or says by a byte order mark that it is UTF-16 or UTF-32. Any file may be packed: a second ending
    .gz. Endings may be in capitals.

    Args:
        dtype: torch.float32, torch.float64, or None for float32 where that keeps the cloud and float64 where not: where
            rounding would move a point by more than a millionth of the cloud's extent (the largest over its
            coordinates), or make different points one, as of metres in a survey's grid. The same file always gives the
            same.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file, and the line in text: of none of these formats, empty, truncated, points of mixed
            dimension, not finite in float32, too large for the memory, packed to less than a hundredth of more than 16
            MiB (unpack such a file by hand); a bad dtype.
    """
    path = Path(path)
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype must be torch.float32, torch.float64 or None, got {dtype}")
    ending = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    reader = _READERS.get(ending.lower())
    if reader is None:
        raise ValueError(f"{path}: its name must end in one of {', '.join(_READERS)}")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # told below, with the place
            array = reader(path)
            rounded = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(rounded).all():
            row = int((~np.isfinite(rounded)).any(1).argmax())
            raise ValueError(f"{path}: point {row} (the first is 0) is not finite in float32: {array[row].tolist()}")
        if dtype is None:
            dtype = torch.float32 if _keeps(rounded, array) else torch.float64
        return torch.from_numpy(rounded if dtype == torch.float32 else np.ascontiguousarray(array, np.float64))
    except MemoryError as error:
        raise ValueError(f"{path} does not fit into the memory") from error


def _keeps(rounded: np.ndarray, array: np.ndarray) -> bool:
    """Whether points (n, d) rounded to float32 are still the cloud."""
    if array.dtype.itemsize <= 4:
        return True
    moved = np.abs(array - rounded).max()
    if moved == 0:
        return True
    if moved > _MOST_MOVED * np.ptp(array, axis=0).max():
        return False
    # Points that became one are neighbours in the order of a number made of all their bits; zero has one sign.
    bits = (rounded + np.float32(0)).view(np.uint32).astype(np.uint64)
    number = np.zeros(len(bits), np.uint64)
    for column in bits.T:
        number = (number ^ column) * np.uint64(0x9E3779B97F4A7C15)
    order = number.argsort()
    first, second = order[:-1], order[1:]
    same = np.flatnonzero(number[first] == number[second])
    first, second = first[same], second[same]
    fused = (rounded[first] == rounded[second]).all(1) & (array[first] != array[second]).any(1)
    return not fused.any()


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": read_array,
    ".npz": read_array,
    ".ply": read_ply,
    ".off": read_vertices,
    ".xyz": read_text,
    ".txt": read_text,
    ".csv": read_text,
}


def write_points(path: str | Path, points: Tensor) -> None:
    """Write a cloud (n, d) in the format that the file's name says: .npy, .ply (binary, d = 2 or 3) or .xyz.

    It is written in float32, or in float64 where `load_points` would read it so: `load_points` gives back the same
    points, rounded to float32 if that keeps the cloud. Endings may be in capitals. The file is replaced whole or not at
    all.

    Raises:
        TypeError, ValueError: `points` is no cloud finite in float32, or does not go into a file of that name.
        FileNotFoundError: there is no folder for it.
    """
    path = Path(path)
    points = check_cloud("points", points).detach().cpu()
    if points.dim() != 2:
        raise ValueError(f"points must have shape (n, d), got {tuple(points.shape)}")
    array = points.float().numpy()
    if not np.isfinite(array).all():
        raise ValueError("points must be finite in float32")
    if not _keeps(array, wide := points.double().numpy()):
        array = wide
    ending = path.suffix.lower()
    if ending == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        content = buffer.getvalue()
    elif ending == ".ply":
        if array.shape[1] not in (2, 3):
            raise ValueError(f"{path}: a PLY file holds points in 2 or 3 dimensions, got {array.shape[1]}")
        content = ply_bytes(array)
    elif ending == ".xyz":
        content = _text_bytes(array)
    else:
        raise ValueError(f"{path}: its name must end in one of .npy, .ply, .xyz")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    write_atomically(path, content)


def _text_bytes(array: np.ndarray) -> bytes:
    """A line a point, in as many digits as `load_points` needs to give the same back: nine tell float32s apart."""
    words = [[f"{value:.9g}" for value in row] for row in array.tolist()]
    if array.dtype != np.float32 or not _keeps(array, np.array(words).astype(np.float64)):
        words = [list(map(repr, row)) for row in array.tolist()]
    return "".join(" ".join(row) + "\n" for row in words).encode()
