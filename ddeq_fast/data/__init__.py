"""Data sets of labelled point clouds: `load("digits")`; others are added by `register`."""

from __future__ import annotations

from collections.abc import Callable

from ddeq_fast.data.dataset import Batch, Dataset, Split
from ddeq_fast.data.digits import load_digits
from ddeq_fast.validation import check_choice

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

__all__ = ["Batch", "Dataset", "Split", "load", "names", "register"]
