"""scikit-learn's 1,797 handwritten digits (Alpaydin & Kaynak 1998, UCI) as point clouds of their inked pixels."""

from __future__ import annotations

import torch

from ddeq_fast.data.dataset import Dataset, Split
from ddeq_fast.data.pixels import check_options, clouds, inked
from ddeq_fast.utils.optional import require

TEST_SIZE = 360
_SPLIT_SEED = 0
_CENTRE, _SCALE = 3.5, 2.0


def load_digits(
    root: None = None, intensity: str = "coordinate", max_points: int | None = None, *, seed: int = 0
) -> Dataset:
    """Digits, 1,437 for training and 360 for testing: a fixed split with the same share of every digit.

    A cloud has one point for each pixel that is not blank, about 31 of 64; columns and rows are centred and
    scaled to unit deviation roughly, by numbers that are the same for all images.

    Args:
        root: None: the images come with scikit-learn.
        intensity: "coordinate" makes brightness the third coordinate, from -1 to 1, "weight" the weight of the
            point, of mean one over a cloud, "none" drops it.
        max_points: larger clouds are cut to that many points, drawn at random.
        seed: of the points that are drawn.

    Raises:
        ValueError: a bad argument. ImportError: scikit-learn is missing.
    """
    if root is not None:
        raise ValueError(f"root must be None for digits, which come with scikit-learn; got {str(root)!r}")
    dim = check_options(intensity, max_points, seed)
    require("sklearn", "data")
    from sklearn.datasets import load_digits as raw
    from sklearn.model_selection import train_test_split

    images, labels = raw(return_X_y=True)
    images, labels = torch.tensor(images).view(-1, 8, 8) / 16, torch.tensor(labels)
    parts = train_test_split(
        range(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=_SPLIT_SEED, shuffle=True
    )
    splits = []
    for stream, part in enumerate(parts):
        points, weights = clouds(
            inked(images[part]),
            centre=_CENTRE,
            scale=_SCALE,
            intensity=intensity,
            max_points=max_points,
            seeds=(seed, stream),
        )
        splits.append(Split(points, weights, labels[part]))
    train, test = splits
    return Dataset("digits", dim, 10, train, test)
