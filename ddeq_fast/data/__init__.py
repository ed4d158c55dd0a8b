"""Data sets of labelled point clouds: digits, mnist, modelnet40-s, -m and -l; others are added by `register`.

Every loader takes these keywords, all with defaults, and others of its own:

* `root`: folder of the files (str or Path); None for mnist/ or modelnet40/ inside the folder that the environment
  variable DDEQ_FAST_DATA names, and for data that come with a library;
* `intensity`: what becomes of the brightness of a pixel, "coordinate" (third coordinate), "weight" or "none"; of no
  effect where there are no pixels;
* `max_points`: largest clouds (int), larger ones are cut to points drawn at random; None for whole clouds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ddeq_fast.data.dataset import Batch, Dataset, Split
from ddeq_fast.data.digits import load_digits
from ddeq_fast.data.mnist import load_mnist
from ddeq_fast.data.modelnet import SIZES, load_modelnet
from ddeq_fast.utils.validation import check_choice

_LOADERS: dict[str, Callable[..., Dataset]] = {}


def register(name: str, loader: Callable[..., Dataset]) -> None:
    """Make a data set known by name; raises ValueError if the name is taken."""
    if name in _LOADERS:
        raise ValueError(f"data set name {name!r} is taken")
    _LOADERS[name] = loader


def names() -> list[str]:
    """Registered data sets."""
    return list(_LOADERS)


def load(name: str, **options) -> Dataset:
    """The data set of that name; options are those of its loader. Raises ValueError for an unknown name."""
    return _LOADERS[check_choice("data", name, _LOADERS)](**options)


register("digits", load_digits)
register("mnist", load_mnist)
for _size in SIZES:
    register(f"modelnet40-{_size}", partial(load_modelnet, size=_size))

__all__ = ["Batch", "Dataset", "Split", "load", "names", "register"]
