"""ModelNet40 (Wu et al. 2015) as point clouds, from its folders of OFF meshes."""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ddeq_fast.data.cache import cached, fingerprint
from ddeq_fast.data.dataset import Dataset, Split, generator
from ddeq_fast.data.formats.off import read_mesh, read_vertices
from ddeq_fast.data.formats.reading import data_folder, is_hidden
from ddeq_fast.data.pixels import check_options
from ddeq_fast.data.sampling import sample_surface, to_unit_ball, voxel_reduce
from ddeq_fast.utils.optional import require
from ddeq_fast.utils.validation import check_choice, check_path

# Least and most points of a cloud. "m" is the range that the original code reduces to; "s" is half and "l" twice that.
SIZES = {"s": (250, 400), "m": (500, 800), "l": (1000, 1600)}
_PARTS = ("train", "test")
_EXPECTED = "CLASS/train/*.off and CLASS/test/*.off"
_FORMAT = 1  # of the clouds: counted up when the same files and options give others


def load_modelnet(
    root: str | os.PathLike[str] | None = None,
    intensity: str = "coordinate",
    max_points: int | None = None,
    *,
    size: str = "s",
    source: str = "vertices",
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Dataset:
    """ModelNet40, in its official split; any folder of that layout will do, a class for every folder.

    Every cloud has mean zero and a largest norm of one. What was made from the meshes, which takes minutes, is kept in
    a checked file and made again when a mesh has changed.

    Args:
        root: folder of CLASS/train/*.off and CLASS/test/*.off. If None, the folder modelnet40/ in the one that the
            environment variable DDEQ_FAST_DATA names.
        intensity: of no effect.
        max_points: larger clouds are cut to that many points, drawn at random.
        size: "s" for 250 to 400 points, "m" for 500 to 800, "l" for 1,000 to 1,600.
        source: "vertices" of the mesh, reduced by a voxel grid to the range of that size (meshes with fewer give
            smaller clouds), or points drawn uniformly from its "surface", as many as the range allows.
        cache: folder for the kept file; `root` if None.
        seed: of all points that are drawn; those of a mesh do not depend on the other meshes.

    Raises:
        FileNotFoundError: saying where files were looked for. ValueError: naming the file that is damaged, and the
        line; a bad argument. ImportError: safetensors or tqdm is missing.
    """
    check_options(intensity, max_points, seed)
    low, high = SIZES[check_choice("size", size, SIZES)]
    check_choice("source", source, ("vertices", "surface"))
    place = None if cache is None else check_path("cache", cache)
    folder = data_folder("modelnet40", root, _EXPECTED)
    classes, paths = _paths(folder)
    options = (_FORMAT, size, source, seed if source == "surface" else None)
    kept = (place or folder) / f".ddeq_fast-{size}-{source}.safetensors"

    def build() -> dict[str, Tensor]:
        every = [path for part in _PARTS for path in paths[part]]
        progress = require("tqdm", "data").tqdm(every, "reading meshes", file=sys.stderr, disable=None)
        clouds = [_cloud(path, folder, low, high, source, seed) for path in progress]
        return {"points": torch.cat(clouds), "sizes": torch.tensor([len(cloud) for cloud in clouds])}

    tensors = cached(kept, fingerprint([p for part in _PARTS for p in paths[part]], folder, *options), build)
    clouds = tensors["points"].split(tensors["sizes"].tolist())
    splits = []
    for stream, part in enumerate(_PARTS):
        mine, clouds = clouds[: len(paths[part])], clouds[len(paths[part]) :]
        if max_points is not None:
            mine = [_cut(cloud, max_points, seed, stream, i) for i, cloud in enumerate(mine)]
        labels = torch.tensor([classes.index(path.parent.parent.name) for path in paths[part]])
        splits.append(Split(mine, [torch.ones(len(cloud)) for cloud in mine], labels))
    return Dataset(f"modelnet40-{size}", 3, len(classes), *splits)


def _paths(folder: Path) -> tuple[list[str], dict[str, list[Path]]]:
    """Classes in order of their names, and the meshes of each part, class by class in order of theirs."""
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry)]
    classes = sorted(entry.name for entry in entries if any((entry / part).is_dir() for part in _PARTS))
    if not classes:
        raise FileNotFoundError(f"modelnet40: {folder} holds no folders of classes; expected {_EXPECTED}")
    paths: dict[str, list[Path]] = {part: [] for part in _PARTS}
    for name in classes:
        for part in _PARTS:
            place = folder / name / part
            entries = [entry for entry in place.iterdir() if not is_hidden(entry)] if place.is_dir() else []
            meshes = [entry for entry in entries if entry.suffix.lower() == ".off"]
            if not meshes:
                raise FileNotFoundError(f"modelnet40: {place} holds no OFF files; expected {_EXPECTED}")
            paths[part] += sorted(meshes)
    return classes, paths


def _cloud(path: Path, folder: Path, low: int, high: int, source: str, seed: int) -> Tensor:
    """The cloud (n, 3), float32, of one mesh."""
    if source == "vertices":
        points = voxel_reduce(torch.from_numpy(read_vertices(path)), low, high)
    else:
        vertices, triangles = map(torch.from_numpy, read_mesh(path))
        name = zlib.crc32(path.relative_to(folder).as_posix().encode())
        try:
            points = sample_surface(vertices, triangles, high, generator(seed, name))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return to_unit_ball(points).float()


def _cut(cloud: Tensor, most: int, *seeds: int) -> Tensor:
    if len(cloud) <= most:
        return cloud
    return cloud[torch.randperm(len(cloud), generator=generator(*seeds))[:most].sort().values]
