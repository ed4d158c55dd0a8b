"""MNIST (LeCun et al. 1998) as point clouds of inked pixels, from its IDX files or from its public CSV of points."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddeq_fast.data.dataset import Dataset, Split
from ddeq_fast.data.formats.reading import data_folder, find, read_bytes, read_lines
from ddeq_fast.data.formats.table import parse_table
from ddeq_fast.data.pixels import Pixels, check_options, clouds, inked
from ddeq_fast.utils.validation import check_number

SIDE = 28
_CENTRE, _SCALE = 13.5, 5.0
_IDX = ("train", "t10k")
_CSV = ("train", "test")
_EXPECTED = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, "
    "or train.csv and test.csv; each plain or with .gz"
)


def load_mnist(
    root: str | os.PathLike[str] | None = None,
    intensity: str = "coordinate",
    max_points: int | None = None,
    *,
    threshold: float = 0.25,
    seed: int = 0,
) -> Dataset:
    """MNIST, in its official split.

    Columns and rows are centred and scaled to unit deviation roughly, by numbers that are the same for all images.

    Args:
        root: folder of the four IDX files, or of train.csv and test.csv: a header `label,x0,y0,v0,x1,...` and a line an
            image, with integer positions, y upwards, and brightness, padded with -1 (Kaggle's "MNIST as point
            cloud"). If None, the folder mnist/ in the one that the environment variable DDEQ_FAST_DATA names.
        intensity: "coordinate" makes brightness the third coordinate, from -1 to 1, "weight" the weight of the
            point, of mean one over a cloud, "none" drops it.
        max_points: larger clouds are cut to that many points, drawn at random.
        threshold: share of full brightness that a pixel must exceed to become a point: 0.25 leaves about 119 points
            a cloud, 0 all inked pixels, about 147.
        seed: of the points that are drawn.

    Raises:
        FileNotFoundError: saying where files were looked for. ValueError: naming the file that is damaged and what is
        wrong with it, and its line in a CSV; a bad argument.
    """
    dim = check_options(intensity, max_points, seed)
    check_number("threshold", threshold, high=1.0, closed=True)
    folder = data_folder("mnist", root, _EXPECTED)
    splits = []
    for stream, (pixels, labels) in enumerate(_read(folder, threshold)):
        points, weights = clouds(
            pixels, centre=_CENTRE, scale=_SCALE, intensity=intensity, max_points=max_points, seeds=(seed, stream)
        )
        splits.append(Split(points, weights, labels))
    train, test = splits
    return Dataset("mnist", dim, 10, train, test)


def _read(folder: Path, threshold: float) -> list[tuple[Pixels, Tensor]]:
    """(pixels, labels) of the training and of the test images."""
    images = [path for part in _IDX if (path := _find(folder, f"{part}-images-idx3-ubyte"))]
    labels = [path for part in _IDX if (path := _find(folder, f"{part}-labels-idx1-ubyte"))]
    if len(images) == len(labels) == len(_IDX):
        return [_from_idx(*pair, threshold) for pair in zip(images, labels, strict=True)]
    tables = [path for part in _CSV if (path := _find(folder, f"{part}.csv"))]
    if len(tables) == len(_CSV):
        return [_from_csv(path, threshold) for path in tables]
    names = sorted(path.name for path in folder.iterdir())
    raise FileNotFoundError(f"mnist: {folder} holds {', '.join(names[:8]) or 'nothing'}; expected {_EXPECTED}")


def _find(folder: Path, name: str) -> Path | None:
    return find(folder, name, f"{name}.gz")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file; raises ValueError naming the file unless it holds just that."""
    content = read_bytes(path)
    start = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise ValueError(f"{path} must start with the bytes {magic.hex()}, got {content[:4].hex()}")
    if len(content) < start:
        raise ValueError(f"{path} is truncated: {len(content)} bytes do not hold the header of {start}")
    shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
    size, expected = len(content) - start, int(np.prod(shape, dtype=object))
    if size != expected:
        fault = "is truncated" if size < expected else "has bytes after its end"
        raise ValueError(f"{path} {fault}: its header promises {expected} values {tuple(shape)}, it holds {size}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _from_idx(images_path: Path, labels_path: Path, threshold: float) -> tuple[Pixels, Tensor]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (SIDE, SIDE) or not len(images):
        raise ValueError(f"{images_path} must hold images of {SIDE} x {SIDE}, got an array {images.shape}")
    if len(images) != len(labels):
        raise ValueError(f"{labels_path} holds {len(labels)} labels, but {images_path} {len(images)} images")
    if labels.max() > 9:
        first = int((labels > 9).argmax())
        raise ValueError(f"{labels_path}: labels must lie from 0 to 9, got {labels[first]} at index {first}")
    pixels = inked(torch.from_numpy(images.copy()).float() / 255, threshold)
    empty = _first_empty(pixels, len(images))
    if empty is not None:
        raise ValueError(f"{images_path}: image {empty} has no pixel brighter than the threshold {threshold:g}")
    return pixels, torch.from_numpy(labels.astype(np.int64))


def _from_csv(path: Path, threshold: float) -> tuple[Pixels, Tensor]:
    header, *lines = read_lines(path)
    names = header.strip().split(",")
    count = max(1, len(names) // 3)
    if names != ["label", *(f"{axis}{i}" for i in range(count) for axis in "xyv")]:
        raise ValueError(f"{path}, line 1: expected the header label,x0,y0,v0,x1,y1,v1,..., got {header[:40]!r}")
    table = parse_table(lines, path, first=2, dtype=np.int16, delimiter=",", comments=None)
    if table.shape[1] != len(names):
        raise ValueError(f"{path}, line 2: {table.shape[1]} values under a header of {len(names)}")
    labels, triples = table[:, 0], table[:, 1:].reshape(len(table), count, 3)
    padding = (triples == -1).all(-1)
    position, value = triples[..., :2], triples[..., 2]
    good = padding | ((position >= 0) & (position < SIDE)).all(-1) & (value > 0) & (value <= 255)
    wrong = (labels < 0) | (labels > 9) | ~good.all(1)
    pixels = _pixels(triples, ~padding & (value > 255 * threshold))
    row = int(wrong.argmax()) if wrong.any() else _first_empty(pixels, len(table))
    if row is not None:
        number = [number for number, line in enumerate(lines, start=2) if line.strip()][row]
        raise ValueError(f"{path}, line {number}: {_fault(labels[row], triples[row], good[row], threshold)}")
    return pixels, torch.from_numpy(labels.astype(np.int64))


def _fault(label: int, points: np.ndarray, good: np.ndarray, threshold: float) -> str:
    """What is wrong with a row of a table, a label and points (n, 3), of which some are not `good`."""
    if not 0 <= label <= 9:
        return f"the label must lie from 0 to 9, got {label}"
    if good.all():
        return f"no point is brighter than the threshold {threshold:g}"
    point = int((~good).argmax())
    return (
        f"point {point} must lie on {SIDE} x {SIDE} pixels with a brightness from 1 to 255, or be -1,-1,-1; got "
        + ",".join(map(str, points[point]))
    )


def _pixels(triples: np.ndarray, chosen: np.ndarray) -> Pixels:
    image = torch.from_numpy(chosen.nonzero()[0])
    x, y, value = torch.from_numpy(triples[chosen].astype(np.int64)).unbind(1)
    return Pixels(image, x, y, value.float() / 255)


def _first_empty(pixels: Pixels, number: int) -> int | None:
    empty = pixels.image.bincount(minlength=number) == 0
    return int(empty.int().argmax()) if empty.any() else None
