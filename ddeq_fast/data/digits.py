"""scikit-learn's 1,797 handwritten digits (Alpaydin & Kaynak 1998, UCI) as point clouds of their inked pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq_fast.data.dataset import Dataset, Split
from ddeq_fast.optional import require
from ddeq_fast.validation import check_choice

TEST_SIZE = 360
_SPLIT_SEED = 0
# Pixels are scaled by fixed numbers, not per cloud: where a stroke lies in the frame tells digits apart.
_CENTRE, _SCALE = 3.5, 2.0


def load_digits(intensity: str = "coordinate") -> Dataset:
    """Digits, 1,437 for training and 360 for testing: a fixed split with the same share of every digit.

    A cloud has one point for each pixel that is not blank, about 31 of 64; columns and rows are centred and
    scaled to unit deviation roughly.

    Args:
        intensity: "coordinate" makes it the third coordinate, from -1 to 1, "weight" the weight of the point,
            of mean one over a cloud.

    Raises:
        ValueError: unknown `intensity`. ImportError: scikit-learn is missing.
    """
    check_choice("intensity", intensity, ("coordinate", "weight"))
    require("sklearn", "data")
    from sklearn.datasets import load_digits as raw
    from sklearn.model_selection import train_test_split

    images, labels = raw(return_X_y=True)
    images, labels = torch.tensor(images).view(-1, 8, 8), torch.tensor(labels)
    train, test = train_test_split(
        range(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=_SPLIT_SEED, shuffle=True
    )
    dim = 3 if intensity == "coordinate" else 2
    splits = (_split(images[part], labels[part], dim) for part in (train, test))
    return Dataset("digits", dim, 10, *splits)


def _split(images: Tensor, labels: Tensor, dim: int) -> Split:
    points, weights = zip(*(_cloud(image, dim) for image in images), strict=True)
    return Split(points, weights, labels)


def _cloud(image: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Points (n, dim) and weights (n,) of the inked pixels of an image (8, 8) with values from 0 to 16."""
    row, column = image.nonzero(as_tuple=True)
    ink = image[row, column].float() / 16
    plane = (torch.stack((column.float(), 7 - row.float()), 1) - _CENTRE) / _SCALE
    if dim == 3:
        return torch.cat((plane, 2 * ink[:, None] - 1), 1), torch.ones_like(ink)
    return plane, ink / ink.mean()
