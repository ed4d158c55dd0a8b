"""A data set in one .npz file of arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddeq_fast.data.dataset import TEST_SHARE, Dataset, Split, held_out
from ddeq_fast.data.formats.arrays import read_arrays
from ddeq_fast.data.pixels import check_options
from ddeq_fast.data.recipe import Recipe
from ddeq_fast.utils.validation import check_number, check_path

_EXPECTED = (
    "train_points and train_labels beside those of test_ or val_, or points and labels; counts of points where clouds "
    "differ in size"
)


def load_archive(
    root: str | os.PathLike[str] | None = None,
    intensity: str = "coordinate",
    max_points: int | None = None,
    *,
    normalise: str = "none",
    coordinates: int | None = None,
    test_share: float = TEST_SHARE,
    seed: int = 0,
) -> Dataset:
    """Clouds and labels in a .npz file, nothing in it pickled.

    Its arrays are, of each part, with train_ and test_ before their names (val_ where there is no test_):

    * points: (N, n, d), real numbers; or (sum of counts, d), clouds one behind the other;
    * labels: (N,), integers from 0;
    * counts: (N,), integers: how many points a cloud has, the first ones; without it each has n;

    and, of both, classes: names (C,), if there are any. With nothing before their names, a share of each class is
    held out. Other arrays are passed over.

    Args:
        root: the file.
        intensity: of no effect.
        max_points: larger clouds are cut to that many points, drawn at random.
        normalise, coordinates, test_share: see `load_folder`.
        seed: of what is held out and of the points that are drawn.

    Raises:
        FileNotFoundError: there is no such file. ValueError: naming the file, and the array, that does not do; a bad
        argument.
    """
    check_options(intensity, max_points, seed)
    check_number("test_share", test_share, high=1.0)
    recipe = Recipe(coordinates=coordinates, most=max_points, normalise=normalise, seed=seed)
    if root is None:
        raise FileNotFoundError(f"npz: no file given: pass root, a .npz file; expected in it {_EXPECTED}")
    path = check_path("root", root)
    arrays = read_arrays(path)
    names = _names(path, arrays)
    if "train_points" in arrays:
        held = next((part for part in ("test_", "val_") if f"{part}points" in arrays), None)
        if held is None:
            raise _missing(path, arrays, "test_points")
        parts = [_part(path, arrays, part, recipe) for part in ("train_", held)]
    else:
        every, label = _part(path, arrays, "", recipe)
        chosen = held_out(label, test_share, seed)
        if not chosen.any():
            raise ValueError(f"{path}: labels has no class of two clouds or more: there is none to hold out")
        parts = [([every[i] for i in mask.nonzero()[:, 0].tolist()], label[mask]) for mask in (~chosen, chosen)]
    most = 1 + max(int(label.max()) for _, label in parts)
    if names is not None and most > len(names):
        raise ValueError(f"{path}: labels must be below {len(names)}, how many classes there are; got {most - 1}")
    train, test = (Split(clouds, [torch.ones(len(cloud)) for cloud in clouds], label) for clouds, label in parts)
    return Dataset(path.stem, train.points[0].shape[1], most if names is None else len(names), train, test, names)


def _missing(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> ValueError:
    found = ", ".join(arrays) or "nothing"
    return ValueError(f"{path} holds no array {name}, but {found[:200]}; expected {_EXPECTED}")


def _names(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
    """Names of the classes, if the file has any."""
    if "classes" not in arrays:
        return None
    array = arrays["classes"]
    try:
        names = tuple(array.tolist()) if array.dtype.kind == "U" and array.ndim == 1 else ()
    except ValueError as error:  # numbers that are no characters
        raise ValueError(f"{path}: classes: {error}") from error
    if not names or len({*names}) < len(names):
        raise ValueError(f"{path}: classes must be different texts (C,), got {array.dtype} {array.shape} {names!r:.60}")
    return names


def _integers(path: Path, arrays: Mapping[str, np.ndarray], name: str, low: int, high: int) -> Tensor:
    """An array (N,) of integers in a range."""
    if name not in arrays:
        raise _missing(path, arrays, name)
    array = arrays[name]
    if array.dtype.kind not in "iu" or array.ndim != 1 or not len(array):
        raise ValueError(f"{path}: {name} must be integers (N,), got {array.dtype} {array.shape}")
    if array.min() < low or array.max() > high:
        raise ValueError(f"{path}: {name} must be from {low} to {high}, got {array.min()} to {array.max()}")
    return torch.from_numpy(array.astype(np.int64))


def _part(path: Path, arrays: Mapping[str, np.ndarray], part: str, recipe: Recipe) -> tuple[list[Tensor], Tensor]:
    """Clouds and labels of one part."""
    name = f"{part}points"
    if name not in arrays:
        raise _missing(path, arrays, name)
    points = arrays[name]
    labels = _integers(path, arrays, f"{part}labels", 0, 1 << 31)
    number = len(labels)
    if points.dtype.kind not in "fiu" or points.ndim not in (2, 3) or 0 in points.shape:
        raise ValueError(
            f"{path}: {name} must be real numbers (N, n, d), or (sum of counts, d), got {points.dtype} {points.shape}"
        )
    if points.ndim == 3 and len(points) != number:
        raise ValueError(f"{path}: {name} holds {len(points)} clouds, {part}labels {number} labels")
    if points.ndim == 2 or f"{part}counts" in arrays:
        counts = _integers(path, arrays, f"{part}counts", 1, len(points) if points.ndim == 2 else points.shape[1])
        if len(counts) != number:
            raise ValueError(f"{path}: {part}counts holds {len(counts)} counts, {part}labels {number} labels")
    else:
        counts = torch.full((number,), points.shape[1])
    if points.ndim == 2:
        if int(counts.sum()) != len(points):
            raise ValueError(
                f"{path}: {part}counts add up to {int(counts.sum())}, but {name} holds {len(points)} points"
            )
        rows = np.split(points, counts.cumsum(0)[:-1].numpy())
    else:
        rows = [cloud[:count] for cloud, count in zip(points, counts.tolist(), strict=True)]
    clouds = []
    for i, row in enumerate(rows):
        exact = torch.from_numpy(row.astype(np.float64))
        if not torch.isfinite(exact.float()).all():
            raise ValueError(f"{path}: {name}: cloud {i} (the first is 0) is not finite in float32")
        try:
            clouds.append(recipe.finished(exact, recipe.draw(f"{name} {i}")))
        except ValueError as error:
            raise ValueError(f"{path}: {name}: cloud {i} (the first is 0): {error}") from error
    return clouds, labels
