"""Images as point clouds: one point for each inked pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddeq_fast.data.dataset import generator
from ddeq_fast.utils.validation import check_choice, check_integer, check_number

INTENSITIES = ("coordinate", "weight", "none")


class Pixels(NamedTuple):
    """The inked pixels of many images, image by image.

    image: (n,) int64, ascending, the image of each; x, y: (n,) columns and heights; ink: (n,) float32 in (0, 1].
    """

    image: Tensor
    x: Tensor
    y: Tensor
    ink: Tensor

    def keep(self, chosen: Tensor) -> Pixels:
        """Those of a mask or of ascending indices."""
        return Pixels(*(part[chosen] for part in self))


def inked(images: Tensor, threshold: float = 0.0) -> Pixels:
    """The pixels brighter than a threshold of images (N, rows, columns) with values from 0 to 1; y grows upwards."""
    check_number("threshold", threshold, high=1.0, closed=True)
    image, row, column = (images > threshold).nonzero(as_tuple=True)
    return Pixels(image, column, images.shape[1] - 1 - row, images[image, row, column].float())


def check_intensity(intensity: str) -> int:
    """The dimension of clouds with this treatment of brightness; raises ValueError if there is none of that name."""
    return 3 if check_choice("intensity", intensity, INTENSITIES) == "coordinate" else 2


def check_options(intensity: str, max_points: int | None, seed: int) -> int:
    """The dimension of clouds loaded with these options; raises TypeError or ValueError naming a bad one."""
    if max_points is not None:
        check_integer("max_points", max_points)
    check_integer("seed", seed, low=0)
    return check_intensity(intensity)


def clouds(
    pixels: Pixels, *, centre: float, scale: float, intensity: str, max_points: int | None, seeds: tuple[int, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Points (n_i, d) and weights (n_i,) of each image; every one up to the last must have pixels.

    Args:
        centre, scale: of columns and heights: numbers for all images, since where a stroke lies tells them apart.
        intensity: "coordinate" makes brightness the third coordinate, from -1 to 1, "weight" the weight of the
            point, of mean one over a cloud, "none" drops it.
        max_points: larger clouds are cut to that many points, drawn at random.
        seeds: of these draws.
    """
    if max_points is not None:
        pixels = pixels.keep(_sample(pixels.image.numpy(), max_points, generator(*seeds)))
    points = (torch.stack((pixels.x.float(), pixels.y.float()), 1) - centre) / scale
    weights = torch.ones_like(pixels.ink)
    counts = pixels.image.bincount()
    if intensity == "coordinate":
        points = torch.cat((points, 2 * pixels.ink[:, None] - 1), 1)
    elif intensity == "weight":
        total = torch.zeros(len(counts)).index_add_(0, pixels.image, pixels.ink)
        weights = pixels.ink / (total / counts)[pixels.image]
    sizes = counts.tolist()
    return points.split(sizes), weights.split(sizes)


def _sample(image: np.ndarray, most: int, draw: torch.Generator) -> Tensor:
    """Ascending indices of at most so many pixels an image, drawn without replacement."""
    keys = torch.rand(len(image), generator=draw, dtype=torch.float64).numpy()
    order = np.lexsort((keys, image))  # shuffles the pixels of each image among themselves
    counts = np.bincount(image)
    rank = np.arange(len(image)) - np.repeat(counts.cumsum() - counts, counts)
    return torch.from_numpy(np.sort(order[rank < most]))
