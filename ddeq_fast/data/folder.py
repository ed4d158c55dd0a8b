"""A folder of classes as a data set: a file a cloud, read once and kept."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddeq_fast.data.cache import cached, fingerprint, place
from ddeq_fast.data.classes import Item, find_classes
from ddeq_fast.data.dataset import TEST_SHARE, Dataset, Split
from ddeq_fast.data.files import FORMATS
from ddeq_fast.data.formats.reading import data_folder
from ddeq_fast.data.pixels import check_options
from ddeq_fast.data.recipe import Recipe
from ddeq_fast.data.sampling import cut
from ddeq_fast.utils import console
from ddeq_fast.utils.optional import require
from ddeq_fast.utils.validation import check_flag, check_number

NUMBER = 1024  # of points drawn from a surface, if not said
_EXPECTED = "files in CLASS/train and CLASS/test, in train/CLASS and test/CLASS, or in CLASS"
_FORMAT = 2  # of the clouds: counted up when the same files and options give others


def load_folder(
    root: str | os.PathLike[str] | None = None,
    intensity: str = "coordinate",
    max_points: int | None = None,
    *,
    sampling: str = "surface",
    normalise: str = "ball",
    coordinates: int | None = None,
    test_share: float = TEST_SHARE,
    skip_damaged: bool = False,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Dataset:
    """Any folder of classes: the files of a class in CLASS/train and CLASS/test, in train/CLASS and test/CLASS, or in
    CLASS.

    Files are meshes and clouds of all formats that `load_points` reads; what has another ending is no data. Clouds are
    kept in a checked file and made again when a file has changed.

    Args:
        root: the folder. If None, the folder folder/ in the one that the environment variable DDEQ_FAST_DATA names.
        intensity: of no effect.
        max_points: how many points are drawn from the surface of a mesh, 1,024 if None; larger clouds are cut to that
            many, drawn at random, and whole if None.
        sampling: points drawn uniformly from the "surface" of a mesh, or its "vertices". A file without faces is a
            cloud; it is warned of a folder that holds both.
        normalise: "ball": mean zero, largest norm one; "box": centre of the bounding box zero, largest coordinate one;
            "none": as in the file.
        coordinates: how many of each point are taken, the first ones, where normals or colours follow; None for all.
        test_share: share of each class that is held out where files lie in CLASS, at least one of two or more.
        skip_damaged: leave out files that cannot be read, and say how many.
        cache: folder for the kept file, or "none" to keep nothing; if None, what the environment variable
            DDEQ_FAST_CACHE says, or `root` where it is not set.
        seed: of what is held out and of all points that are drawn; those of a file do not depend on other files.

    Raises:
        FileNotFoundError: saying where files were looked for. ValueError: naming the file that is damaged, and the
        line; a class without a file to train on; a bad argument. ImportError: safetensors or tqdm is missing.
    """
    check_options(intensity, max_points, seed)
    check_number("test_share", test_share, high=1.0)
    recipe = Recipe(sampling, max_points or NUMBER, None, coordinates, max_points, normalise, seed)
    folder = data_folder("folder", root, _EXPECTED)
    names, items = find_classes(folder, "folder", FORMATS, _EXPECTED, test_share, seed)
    what = f"{sampling}-{max_points or 'all'}-{normalise}"
    return read_classes(
        folder.resolve().name, folder, names, items, recipe, what, skip_damaged=skip_damaged, cache=cache
    )


def read_classes(
    name: str,
    folder: Path,
    names: tuple[str, ...],
    items: Sequence[Item],
    recipe: Recipe,
    what: str,
    *,
    max_points: int | None = None,
    skip_damaged: bool = False,
    cache: str | os.PathLike[str] | None = None,
) -> Dataset:
    """The data set of files in classes.

    Args:
        name: of the data set.
        folder: that the files lie in.
        names: of the classes.
        items: the files.
        recipe: what becomes of each.
        what: is kept, in a word; see `cache.place`.
        max_points: clouds are cut to so many points, after what is kept.
        skip_damaged, cache: see `load_folder`.

    Raises as `load_folder`.
    """
    check_flag("skip_damaged", skip_damaged)
    kept = place(folder, what, cache)
    # Sorted, so that what is kept does not depend on the split.
    items = sorted(items, key=lambda item: item.path.relative_to(folder).as_posix())

    def build() -> dict[str, Tensor]:
        return _read(items, folder, recipe, skip_damaged)

    source = fingerprint([item.path for item in items], folder, _FORMAT, recipe.key(), skip_damaged)
    tensors = cached(kept, source, build)
    clouds, faces = tensors["points"].split(tensors["sizes"].tolist()), tensors["faces"]
    _report(items, clouds, faces, recipe)
    good = [(item, cloud) for item, cloud in zip(items, clouds, strict=True) if len(cloud)]
    splits = []
    for held, part in enumerate(("train", "test")):
        mine = sorted((pair for pair in good if pair[0].test == held), key=lambda pair: (pair[0].label, pair[0].path))
        missing = {*range(len(names))} - {item.label for item, _ in mine}
        if not mine or (missing and not held):
            of = f"class {names[min(missing)]}" if mine else "any class"
            raise ValueError(f"{name}: {folder} leaves no file of {of} to {part} on")
        points = [cut(cloud, max_points, recipe.draw(item.path.relative_to(folder).as_posix())) for item, cloud in mine]
        labels = torch.tensor([item.label for item, _ in mine])
        splits.append(Split(points, [torch.ones(len(cloud)) for cloud in points], labels))
    train, test = splits
    return Dataset(name, train.points[0].shape[1], len(names), train, test, names)


def _read(items: Sequence[Item], folder: Path, recipe: Recipe, skip_damaged: bool) -> dict[str, Tensor]:
    """points: all clouds one behind the other; sizes (N,), 0 of a damaged file; faces (N,): whether points of a file
    were drawn from its faces."""
    progress = require("tqdm", "data").tqdm(items, "reading files", file=sys.stderr, disable=None)
    clouds, faces = [], []
    first: tuple[Path, int] | None = None
    for item in progress:
        try:
            cloud, has_faces = recipe.cloud(item.path, item.path.relative_to(folder).as_posix())
        except ValueError:
            if not skip_damaged:
                raise
            cloud, has_faces = torch.empty(0, 0), False
        first = first or ((item.path, cloud.shape[1]) if len(cloud) else None)
        if first and len(cloud) and cloud.shape[1] != first[1]:
            raise ValueError(
                f"{item.path} holds points in {cloud.shape[1]} dimensions, but {first[0]} in {first[1]}: `coordinates` "
                "takes as many of all"
            )
        clouds.append(cloud)
        faces.append(has_faces)
    whole = [cloud for cloud in clouds if len(cloud)] or [torch.empty(0, 1)]
    sizes = torch.tensor([len(cloud) for cloud in clouds])
    return {"points": torch.cat(whole), "sizes": sizes, "faces": torch.tensor(faces)}


def _report(items: Sequence[Item], clouds: Sequence[Tensor], faces: Tensor, recipe: Recipe) -> None:
    """Say what a user might not expect of these files."""
    damaged = [item.path for item, cloud in zip(items, clouds, strict=True) if not len(cloud)]
    if damaged:
        console.say(f"{len(damaged)} of {len(items)} files are damaged and left out, first {damaged[0]}", error=True)
    plain = [
        item.path for item, cloud, has in zip(items, clouds, faces.tolist(), strict=True) if len(cloud) and not has
    ]
    if recipe.sampling == "surface" and plain and faces.any():
        warnings.warn(
            f"{len(plain)} of {len(items)} files have no faces, first {plain[0]}: their points are taken, those of the "
            "others drawn from the surface",
            stacklevel=4,
        )
