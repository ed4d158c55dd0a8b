"""One cloud a file: `load_points` and `write_points`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddeq_fast.checkpoints import write_atomically
from ddeq_fast.data.off import read_vertices
from ddeq_fast.data.ply import ply_bytes, read_ply
from ddeq_fast.data.reading import parse_table, read_bytes, read_lines
from ddeq_fast.validation import check_cloud


def load_points(path: str | Path) -> Tensor:
    """The cloud (n, d) of a file, float32; its name says of which format it is.

    * .npy: an array (n, d) of numbers; .npz: one such array, or the one called "points" among several;
    * .ply: the vertices, x and y and, if present, z; ASCII or binary;
    * .off: the vertices of the mesh;
    * .xyz, .txt, .csv: a line a point, numbers between white space or commas, every column a coordinate; comments after
      #, and one line of column names on top.

    Any may be packed: a second ending .gz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file, and the line in text: of none of these formats, empty, truncated, points of mixed
            dimension, not finite in float32.
    """
    path = Path(path)
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    reader = _READERS.get(ending.lower())
    if reader is None:
        raise ValueError(f"{path}: its name must end in one of {', '.join(_READERS)}")
    with np.errstate(over="ignore", invalid="ignore"):  # told below, with the place
        array = reader(path)
        points = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(points).all():
        row = int((~np.isfinite(points)).any(1).argmax())
        raise ValueError(f"{path}: point {row} (the first is 0) is not finite in float32: {array[row].tolist()}")
    return torch.from_numpy(points)


def _text(path: Path) -> np.ndarray:
    lines = read_lines(path)
    first = next((i for i, line in enumerate(lines) if line.split("#")[0].strip()), 0)
    line = lines[first].split("#")[0]
    delimiter = "," if "," in line else None
    names = [word.strip() for word in line.split(delimiter)]
    if (
        names
        and all(word[:1].isalpha() for word in names)
        and not {"nan", "inf", "infinity"} & {*map(str.lower, names)}
    ):
        first += 1
    if first == len(lines):
        raise ValueError(f"{path} holds column names, but no points")
    return parse_table(lines[first:], path, first=first + 1, delimiter=delimiter)


def _numpy(path: Path) -> np.ndarray:
    content, names = read_bytes(path), []
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(array, np.ndarray):
            names = array.files
            chosen = names if len(names) == 1 else [name for name in names if name == "points"]
            array = array[chosen[0]] if chosen else None
    except Exception as error:  # of many kinds: numpy, zipfile and zlib raise their own
        raise ValueError(f"{path} is damaged, or holds something else than numbers: {error}") from error
    if array is None:
        raise ValueError(f"{path} must hold one array, or one called points; it holds {', '.join(names) or 'none'}")
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        got = f"shape {array.shape} of {array.dtype}"
        raise ValueError(f"{path} must hold an array (n, d) of real numbers, n and d at least 1, got {got}")
    return array


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": _numpy,
    ".npz": _numpy,
    ".ply": read_ply,
    ".off": read_vertices,
    ".xyz": _text,
    ".txt": _text,
    ".csv": _text,
}


def write_points(path: str | Path, points: Tensor) -> None:
    """Write a cloud (n, d) as float32 in the format that the file's name says: .npy, .ply (binary, d = 2 or 3) or .xyz.

    The file is replaced whole or not at all.

    Raises:
        TypeError, ValueError: `points` is no finite cloud, or does not go into a file of that name.
        FileNotFoundError: there is no folder for it.
    """
    path = Path(path)
    array = check_cloud("points", points).detach().cpu().float().numpy()
    if array.ndim != 2:
        raise ValueError(f"points must have shape (n, d), got {array.shape}")
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
        content = "".join(" ".join(f"{value:.9g}" for value in row) + "\n" for row in array.tolist()).encode()
    else:
        raise ValueError(f"{path}: its name must end in one of .npy, .ply, .xyz")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    write_atomically(path, content)
