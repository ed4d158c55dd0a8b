"""Results that take long to make, kept in a checked file: safetensors, nothing pickled."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from ddeq_fast.utils import checkpoints


def fingerprint(files: Iterable[Path], folder: Path, *options) -> str:
    """A hash that changes with the options, and with the names, sizes or times of change of files in a folder."""
    digest = hashlib.sha256(repr(options).encode())
    for path in files:
        state = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cached(path: Path, source: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors kept at `path` if they were made from this source and are whole; otherwise built and kept.

    The file is replaced whole or not at all. A damaged one, and one that cannot be written, is warned of.

    Args:
        path: of the file.
        source: `fingerprint` of what the tensors are made from.
        build: makes them.
    """
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
        checkpoints.save(path, tensors, {"source": source})
    except OSError as error:
        warnings.warn(f"what was read is not kept for the next time: {error}", stacklevel=2)
    return tensors
