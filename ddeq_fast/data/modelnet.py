"""ModelNet40 (Wu et al. 2015) as point clouds: a folder of classes, of OFF meshes reduced to a range of sizes."""

from __future__ import annotations

import os

from ddeq_fast.data.classes import find_classes
from ddeq_fast.data.dataset import Dataset
from ddeq_fast.data.folder import read_classes
from ddeq_fast.data.formats.reading import data_folder
from ddeq_fast.data.pixels import check_options
from ddeq_fast.data.recipe import Recipe
from ddeq_fast.utils.validation import check_choice

# Least and most points of a cloud. "m" is the range that the original code reduces to; "s" is half and "l" twice that.
SIZES = {"s": (250, 400), "m": (500, 800), "l": (1000, 1600)}
_EXPECTED = "CLASS/train/*.off and CLASS/test/*.off"


def load_modelnet(
    root: str | os.PathLike[str] | None = None,
    intensity: str = "coordinate",
    max_points: int | None = None,
    *,
    size: str = "s",
    sampling: str = "vertices",
    normalise: str = "ball",
    skip_damaged: bool = False,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Dataset:
    """ModelNet40, in its official split; any folder of that layout will do, a class for every folder.

    What was made from the meshes, which takes minutes, is kept in a checked file and made again when a mesh has
    changed.

    Args:
        root: folder of CLASS/train/*.off and CLASS/test/*.off. If None, the folder modelnet40/ in the one that the
            environment variable DDEQ_FAST_DATA names.
        intensity: of no effect.
        max_points: larger clouds are cut to that many points, drawn at random.
        size: "s" for 250 to 400 points, "m" for 500 to 800, "l" for 1,000 to 1,600.
        sampling: "vertices" of the mesh, reduced by a voxel grid to the range of that size (meshes with fewer give
            smaller clouds), or points drawn uniformly from its "surface", as many as the range allows.
        normalise, skip_damaged, cache: see `load_folder`.
        seed: of all points that are drawn; those of a mesh do not depend on the other meshes.

    Raises:
        FileNotFoundError: saying where files were looked for. ValueError: naming the file that is damaged, and the
        line; a bad argument. ImportError: safetensors or tqdm is missing.
    """
    check_options(intensity, max_points, seed)
    voxels = SIZES[check_choice("size", size, SIZES)]
    recipe = Recipe(sampling, voxels[1], voxels, normalise=normalise, seed=seed)
    folder = data_folder("modelnet40", root, _EXPECTED)
    names, items = find_classes(folder, "modelnet40", (".off",), _EXPECTED, None, seed)
    what = f"{size}-{sampling}" + f"-{normalise}" * (normalise != "ball")
    return read_classes(
        f"modelnet40-{size}",
        folder,
        names,
        items,
        recipe,
        what,
        max_points=max_points,
        skip_damaged=skip_damaged,
        cache=cache,
    )
