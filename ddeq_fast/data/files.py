"""One cloud a file: `load_points` and `write_points`; the name of a file says its format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddeq_fast.data.formats import obj, off, ply
from ddeq_fast.data.formats.arrays import npy_bytes, npz_bytes, read_array
from ddeq_fast.data.formats.mesh import Mesh
from ddeq_fast.data.formats.precision import keeps
from ddeq_fast.data.formats.text import read_text, text_bytes
from ddeq_fast.utils.files import write_atomically
from ddeq_fast.utils.validation import check_cloud, check_path


class Format(NamedTuple):
    """How files of one ending are read and written.

    read: the array (n, d) of a file, of any real dtype; errors name the file. write: what a file of an array (n, d),
    float32 or float64, holds; ValueError if it cannot hold it. None for a format that is only read. mesh: points with
    triangles, of formats that have faces. beside: whether `write` takes further arrays by name.
    """

    read: Callable[[Path], np.ndarray]
    write: Callable[..., bytes] | None = None
    mesh: Callable[[Path], Mesh] | None = None
    beside: bool = False


FORMATS = {
    ".npy": Format(read_array, npy_bytes),
    ".npz": Format(read_array, npz_bytes, beside=True),
    ".ply": Format(ply.read_ply, ply.ply_bytes, ply.read_mesh),
    ".off": Format(off.read_vertices, mesh=off.read_mesh),
    ".obj": Format(obj.read_vertices, mesh=obj.read_mesh),
    ".xyz": Format(read_text, text_bytes),
    ".txt": Format(read_text),
    ".csv": Format(read_text),
}
# Endings of the formats that are written too.
WRITTEN = tuple(ending for ending, kind in FORMATS.items() if kind.write is not None)

_NO_FACES = np.empty((0, 3), np.int64)


def load_points(path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Tensor:
    """The cloud (n, d) of a file; its name says of which format it is.

    * .npy: an array (n, d) of numbers; .npz: one such array, or the one called "points" among several;
    * .ply: the vertices, x and y and, if present, z; ASCII (a line a record) or binary;
    * .off: the vertices of the mesh; OFF, COFF, NOFF, CNOFF and these after ST, as text;
    * .obj: the vertices of all objects and groups;
    * .xyz, .txt, .csv: a line a point, numbers between white space, commas or semicolons; comments after # or //; on
      top their number and a line of column names, plain or as a comment. Where these name x and y, those
      columns and z are taken, and others left out; otherwise every column is a coordinate.

    Text is UTF-8, or says by a byte order mark that it is UTF-16 or UTF-32. Any file may be packed: a second ending
    .gz. Endings may be in capitals.

    Args:
        path: of the file.
        dtype: torch.float32, torch.float64, or None for float32 where that keeps the cloud and float64 where not: where
            rounding would move a point by more than a millionth of the cloud's extent (the largest over its
            coordinates), or make different points one, as of metres in a survey's grid. The same file always gives the
            same.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: a path that is none.
        ValueError: naming the file, and the line in text: of none of these formats, empty, truncated, points of mixed
            dimension, not finite in float32, too large for the memory, packed to less than a hundredth of more than 16
            MiB (unpack such a file by hand); a bad dtype.
    """
    path, dtype = check_path("path", path), _check_dtype(dtype)
    read = _format(path).read
    points, rounded = _read(path, lambda path: Mesh(read(path), _NO_FACES))
    array = points.vertices
    if dtype is None:
        dtype = torch.float32 if keeps(rounded, array) else torch.float64
    return torch.from_numpy(rounded if dtype == torch.float32 else np.ascontiguousarray(array, np.float64))


def load_mesh(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor]:
    """Points (n, d), float64, of a file that `load_points` reads, and triangles (m, 3), int64, indices of points.

    Polygons are cut into triangles around their first corner. There are none (m = 0) of a format, or in a file, that
    has no faces, which is a cloud.

    Raises FileNotFoundError, TypeError, ValueError: as `load_points`, and for a face that is none.
    """
    path = check_path("path", path)
    kind = _format(path)
    mesh, _ = _read(path, kind.mesh or (lambda path: Mesh(kind.read(path), _NO_FACES)))
    return torch.from_numpy(np.ascontiguousarray(mesh.vertices, np.float64)), torch.from_numpy(mesh.triangles)


def ending(path: Path) -> str:
    """What a file's name says of its format: its ending in small letters, without a second one of gzip."""
    return (path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix).lower()


def _format(path: Path) -> Format:
    if ending(path) not in FORMATS:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}, got {path}")
    return FORMATS[ending(path)]


def _read(path: Path, read: Callable[[Path], Mesh]) -> tuple[Mesh, np.ndarray]:
    """(what `read` makes of a file, its points in float32); ValueError if these are not finite, or it is too large."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # told below, with the place
            mesh = read(path)
            rounded = np.ascontiguousarray(mesh.vertices, np.float32)
            finite = np.isfinite(rounded)
    except MemoryError as error:
        raise ValueError(f"{path} does not fit into the memory") from error
    if not finite.all():
        row = int((~finite).any(1).argmax())
        given = mesh.vertices[row].tolist()
        raise ValueError(f"{path}: point {row} (the first is 0) is not finite in float32: {given}")
    return mesh, rounded


def write_points(
    path: str | os.PathLike[str],
    points: Tensor,
    *,
    dtype: torch.dtype | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a cloud in the format that the file's name says: .npy, .npz, .ply (binary, d = 2 or 3) or .xyz.

    Endings may be in capitals. The file is replaced whole or not at all.

    Args:
        path: of the file.
        points: (n, d), floating-point, on any device.
        dtype: of the file, torch.float32 or torch.float64; None for float32, or float64 where `load_points` would read
            it so: `load_points` gives back the same points, rounded to float32 if that keeps the cloud.
        beside: further tensors of a .npz file by their names, none of them "points"; no other format holds any.

    Raises:
        TypeError, ValueError: `points` is no cloud finite in float32, or does not go into a file of that name; a path
            that is none; a bad dtype or tensor beside.
        FileNotFoundError: there is no folder for it.
    """
    path, dtype = check_path("path", path), _check_dtype(dtype)
    if check_cloud("points", points).dim() != 2:
        raise ValueError(f"points must have shape (n, d), got {tuple(points.shape)}")
    if points.is_meta:
        raise ValueError("points must have values, got a tensor on meta")
    points = points.detach().cpu()
    rounded, wide = points.float().numpy(), points.double().numpy()
    if not np.isfinite(rounded).all():
        raise ValueError("points must be finite in float32")
    kind = FORMATS.get(path.suffix.lower())
    if kind is None or kind.write is None:
        raise ValueError(f"path must end in one of {', '.join(WRITTEN)}, got {path}")
    more = _beside(beside, path, kind)
    single = keeps(rounded, wide) if dtype is None else dtype == torch.float32
    try:
        content = kind.write(rounded if single else wide, **more)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    write_atomically(path, content)


def _beside(beside: Mapping[str, Tensor] | None, path: Path, kind: Format) -> dict[str, np.ndarray]:
    """Arrays to be written beside the points, by name."""
    given = {} if beside is None else dict(beside)
    if given and not kind.beside:
        raise ValueError(f"beside must be None for a {path.suffix.lower()} file, got {', '.join(given)}")
    for name, tensor in given.items():
        if not isinstance(name, str) or name in ("points", "file"):
            raise ValueError(f"beside must have other names than {name!r}")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"beside[{name!r}] must be a torch.Tensor, got {type(tensor).__name__}")
    return {name: tensor.detach().cpu().numpy() for name, tensor in given.items()}


def _check_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    if dtype is not None and dtype is not torch.float32 and dtype is not torch.float64:
        raise ValueError(f"dtype must be torch.float32, torch.float64 or None, got {dtype!r}")
    return dtype
