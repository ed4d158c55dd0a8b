"""Data sets of labelled point clouds: digits, mnist, modelnet40-s, -m and -l, and what people have: a folder of files,
or a .npz file of arrays. Others are added by `register`.

`load` gives a `Dataset` by name, with a training and a test `Split`, whose `order` and `batch` serve padded batches.
Single clouds come from files by `load_points`, meshes by `load_mesh`, and clouds go there by `write_points`.

Every loader takes these keywords, all with defaults, and others of its own:

* `root`: folder of the files, of npz the file (str or Path); None for mnist/, modelnet40/ or folder/ inside the folder
  that the environment variable DDEQ_FAST_DATA names, and for data that come with a library;
* `intensity`: what becomes of the brightness of a pixel, "coordinate" (third coordinate), "weight" or "none"; of no
  effect where there are no pixels;
* `max_points`: largest clouds (int), larger ones are cut to points drawn at random; None for whole clouds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ddeq_fast.data.archive import load_archive
from ddeq_fast.data.dataset import Batch, Dataset, Split
from ddeq_fast.data.digits import load_digits
from ddeq_fast.data.files import load_mesh, load_points, write_points
from ddeq_fast.data.folder import load_folder
from ddeq_fast.data.mnist import load_mnist
from ddeq_fast.data.modelnet import SIZES, load_modelnet
from ddeq_fast.utils.options import check_options
from ddeq_fast.utils.validation import check_choice

_LOADERS: dict[str, Callable[..., Dataset]] = {}


def register(name: str, loader: Callable[..., Dataset]) -> None:
    """Make a data set known by name; `loader` returns it, and is called with the options of `load`.

    Raises TypeError, ValueError: a name that is no string or is taken, a loader that cannot be called.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    if not callable(loader):
        raise TypeError(f"loader must make a data set when called, got {type(loader).__name__}")
    if name in _LOADERS:
        raise ValueError(f"data set name {name!r} is taken")
    _LOADERS[name] = loader


def names() -> list[str]:
    """Registered data sets."""
    return list(_LOADERS)


def load(name: str, **options: Any) -> Dataset:
    """The data set of that name.

    Args:
        name: see `names`.
        options: of its loader, `root`, `intensity` and `max_points` among them.

    Raises:
        ValueError: an unknown name, or a bad option.
        TypeError: an option that the loader does not know, or a loader that returns something else than a `Dataset`.
        FileNotFoundError, ImportError: the files, or a library, are not there.
    """
    loader = _LOADERS[check_choice("name", name, _LOADERS)]
    check_options(f"data set {name!r}", loader, options)
    dataset = loader(**options)
    if not isinstance(dataset, Dataset):
        raise TypeError(f"loader of data set {name!r} must return a Dataset, got {type(dataset).__name__}")
    return dataset


register("digits", load_digits)
register("mnist", load_mnist)
for _size in SIZES:
    register(f"modelnet40-{_size}", functools.partial(load_modelnet, size=_size))
register("folder", load_folder)
register("npz", load_archive)

__all__ = [
    "Batch",
    "Dataset",
    "Split",
    "load",
    "load_archive",
    "load_folder",
    "load_mesh",
    "load_modelnet",
    "load_points",
    "names",
    "register",
    "write_points",
]
