"""Folders of classes: which files are of which class, and of which part."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from ddeq_fast.data.dataset import held_out
from ddeq_fast.data.files import ending
from ddeq_fast.data.formats.reading import is_hidden

PARTS = ("train", "test")
# Other formats of clouds and meshes: whose files are passed over without a word may be missed.
_UNREAD = {".stl", ".glb", ".gltf", ".dae", ".fbx", ".3ds", ".wrl", ".pcd", ".las", ".laz", ".pts", ".bin", ".h5"}


class Item(NamedTuple):
    """A file of a data set: where it is, the number of its class, whether it is held out."""

    path: Path
    label: int
    test: bool


class _Folder:
    """What a folder holds that is no data by its name is not there."""

    def __init__(self, what: str, endings: Collection[str], expected: str):
        self.what, self.endings, self.expected = what, endings, expected
        self.unread: Counter[str] = Counter()

    def entries(self, place: Path) -> list[Path]:
        """Sorted by name; none of a folder that does not exist."""
        return sorted(entry for entry in place.iterdir() if not is_hidden(entry)) if place.is_dir() else []

    def folders(self, place: Path) -> list[Path]:
        """Folders in a folder."""
        return [entry for entry in self.entries(place) if entry.is_dir()]

    def files(self, place: Path) -> list[Path]:
        """Files of data in a folder."""
        files = [entry for entry in self.entries(place) if not entry.is_dir()]
        self.unread.update(ending(entry) for entry in files if ending(entry) in _UNREAD)
        return [entry for entry in files if ending(entry) in self.endings]

    def some(self, place: Path) -> list[Path]:
        """The same; raises FileNotFoundError if there are none."""
        files = self.files(place)
        if not files:
            raise self.missing(f"{place} holds no files of {', '.join(self.endings)}")
        return files

    def missing(self, fault: str) -> FileNotFoundError:
        """An error that says what is expected."""
        return FileNotFoundError(f"{self.what}: {fault}; expected {self.expected}")


def find_classes(
    folder: Path, what: str, endings: Collection[str], expected: str, test_share: float | None, seed: int
) -> tuple[tuple[str, ...], list[Item]]:
    """(names of the classes, files sorted by class and name).

    Files lie in CLASS/train and CLASS/test, or in train/CLASS and test/CLASS, or in CLASS, of which a share is held out
    then.

    Args:
        folder: to look in.
        what: name of the data set in errors, and `expected` in it.
        endings: of files that are data, in small letters.
        test_share, seed: see `held_out`; None where files without parts are not expected.

    Raises:
        FileNotFoundError: there are no classes, or a part of one is empty. ValueError: files lie beside the parts.
    """
    inside = _Folder(what, endings, expected)
    classes = inside.folders(folder)
    names = [entry.name for entry in classes]
    items: list[Item] = []
    if set(PARTS) <= set(names):
        names = sorted({entry.name for part in PARTS for entry in inside.folders(folder / part)})
        places = {(i, part): folder / part / name for i, name in enumerate(names) for part in PARTS}
    else:
        parted = [entry for entry in classes if any((entry / part).is_dir() for part in PARTS)]
        if parted or test_share is None:
            for entry in classes if test_share is not None else parted:
                if inside.files(entry):
                    raise ValueError(f"{what}: {entry} holds files that are in neither part; expected {expected}")
            names = [entry.name for entry in parted]
            places = {(i, part): folder / name / part for i, name in enumerate(names) for part in PARTS}
        else:
            for label, entry in enumerate(classes):
                items += [Item(path, label, False) for path in inside.some(entry)]
            places = {}
    for (label, part), place in places.items():
        items += [Item(path, label, part == "test") for path in inside.some(place)]
    if not items:
        raise inside.missing(f"{folder} holds no folders of classes")
    if not places and test_share is not None:
        chosen = held_out(torch.tensor([item.label for item in items]), test_share, seed).tolist()
        items = [item._replace(test=test) for item, test in zip(items, chosen, strict=True)]
    if inside.unread:
        found = ", ".join(f"{count} of {kind}" for kind, count in sorted(inside.unread.items()))
        warnings.warn(f"{what}: {folder} holds files that are not read: {found}", stacklevel=2)
    return tuple(names), items
