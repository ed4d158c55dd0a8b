"""Results that take long to make, kept in a checked file: safetensors, nothing pickled."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from ddeq_fast.utils import checkpoints, console
from ddeq_fast.utils.validation import check_path

VARIABLE = "DDEQ_FAST_CACHE"


def place(root: Path, what: str, cache: str | os.PathLike[str] | None) -> Path | None:
    """The file that keeps `what` is made of the files in `root`; None to keep nothing.

    Args:
        root: a folder of data.
        what: a short name.
        cache: folder for such files, "none" to keep nothing, or None for the folder that the environment variable
            DDEQ_FAST_CACHE names ("none" there, too), and for a hidden file in `root` where it is not set.

    Raises TypeError, ValueError for a cache that is no path.
    """
    chosen = os.environ.get(VARIABLE) or None if cache is None else cache
    if chosen is None:
        return root / f".ddeq_fast-{what}.safetensors"
    if chosen == "none":
        return None
    folder, home = check_path("cache", chosen), root.resolve()
    # Several data sets may share the folder, and have folders of one name.
    mark = hashlib.sha256(str(home).encode(errors="surrogateescape")).hexdigest()[:8]
    return folder / f"{home.name}-{what}-{mark}.safetensors"


def fingerprint(files: Iterable[Path], folder: Path, *options) -> str:
    """A hash that changes with the options, and with the names, sizes or times of change of files in a folder."""
    digest = hashlib.sha256(repr(options).encode())
    for path in files:
        state = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cached(path: Path | None, source: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors kept at `path` if they were made from this source and are whole; otherwise built and kept.

    The file is replaced whole or not at all, and its place said on standard error. A damaged one, and one that cannot
    be written, is warned of.

    Args:
        path: of the file, in a folder that is made if there is none; None: nothing is kept.
        source: `fingerprint` of what the tensors are made from.
        build: makes them.
    """
    if path is None:
        return build()
    try:
        found = path.is_file()
    except OSError:  # no right to look into the folder
        found = False
    if found:
        try:
            tensors, info = checkpoints.load(path)
            if info.get("source") == source:
                return tensors
        except (ValueError, OSError) as error:
            warnings.warn(f"{error}; it is made again", stacklevel=2)
    tensors = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save(path, tensors, {"source": source})
    except OSError as error:
        warnings.warn(f"what was read is not kept for the next time: {error}", stacklevel=2)
    else:
        console.say(
            f"what was read is kept for the next time: {path} ({VARIABLE} names another folder, or none)", error=True
        )
    return tensors
