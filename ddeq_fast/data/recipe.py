"""How a file becomes a cloud: points of a mesh, how many, where they lie."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ddeq_fast.data.dataset import generator
from ddeq_fast.data.files import load_mesh, load_points
from ddeq_fast.data.formats.precision import moves_little
from ddeq_fast.data.sampling import NORMALISATIONS, cut, sample_surface, voxel_reduce
from ddeq_fast.utils.validation import check_choice, check_integer

SAMPLINGS = ("surface", "vertices")


@dataclass(frozen=True)
class Recipe:
    """What a cloud is made of, in this order.

    Args:
        sampling: points drawn uniformly from the "surface" of a mesh, or its "vertices"; a file without faces is a
            cloud in either case.
        number: of points drawn from a surface.
        voxels: least and most points to which a voxel grid reduces others; None for no grid.
        coordinates: how many of each point are taken, the first ones; None for all.
        most: larger clouds are cut to so many points, drawn at random; None for whole ones.
        normalise: "ball": mean zero, largest norm one; "box": centre of the bounding box zero, largest coordinate one;
            "none".
        seed: of all that is drawn; what is drawn for a file depends on its name beside that, not on other files.

    Raises TypeError, ValueError naming an argument that is out of range or none of its choices.
    """

    sampling: str = "surface"
    number: int = 1024
    voxels: tuple[int, int] | None = None
    coordinates: int | None = None
    most: int | None = None
    normalise: str = "ball"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("sampling", self.sampling, SAMPLINGS)
        check_choice("normalise", self.normalise, NORMALISATIONS)
        if self.coordinates is not None:
            check_integer("coordinates", self.coordinates)

    def key(self) -> Recipe:
        """A recipe that is the same for all that make the same clouds."""
        if self.sampling == "surface":
            return self
        return replace(self, number=1, seed=0 if self.most is None else self.seed)

    def draw(self, name: str) -> torch.Generator:
        """Randomness for the file of that name."""
        return generator(self.seed, zlib.crc32(name.encode(errors="surrogateescape")))

    def cloud(self, path: Path, name: str) -> tuple[Tensor, bool]:
        """(points (n, d), float32, of the file at `path`, whether they were drawn from its faces).

        Raises ValueError naming the file, and the line in text, of a damaged file or one that does not do.
        """
        draw, faces = self.draw(name), False
        if self.sampling == "vertices":
            points = load_points(path, torch.float64)
        else:
            points, triangles = load_mesh(path)
            faces = len(triangles) > 0
        try:
            if faces:
                points = sample_surface(points, triangles, self.number, draw)
            elif self.voxels is not None:
                points = voxel_reduce(points, *self.voxels)
            return self.finished(points, draw), faces
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def finished(self, points: Tensor, draw: torch.Generator) -> Tensor:
        """Points (n, d) after the last steps, number, coordinates, place and size, in float32."""
        points = cut(points, self.most, draw)
        if self.coordinates is not None:
            if points.shape[1] < self.coordinates:
                raise ValueError(f"points have {points.shape[1]} coordinates, and {self.coordinates} are to be taken")
            points = points[:, : self.coordinates]
        points = NORMALISATIONS[self.normalise](points)
        rounded = points.float()
        if self.normalise == "none" and not moves_little(rounded.numpy(), points.numpy()):
            raise ValueError("single precision does not keep the points so far from zero: normalise them")
        return rounded
