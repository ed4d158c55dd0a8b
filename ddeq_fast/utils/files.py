"""Files that are replaced whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file by `content`, or leave it as it was: a crash half-way loses nothing.

    Raises OSError naming `path`, with the disk full for example; nothing else is left behind then.
    """
    path = Path(path)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:  # it names the temporary file, or none
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    _keep_entries(path.parent)


def _keep_entries(folder: Path) -> None:
    """Have the folder's entries on disk, where the system can do that: a new name is an entry."""
    if os.name == "posix":
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove_leftovers(*paths: Path) -> None:
    """Delete what `write_atomically` left beside these files when it was killed; for their only writer."""
    for path in paths:
        temporary = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}")
        for name in os.listdir(path.parent):
            if temporary.fullmatch(name):
                with suppress(OSError):
                    os.unlink(path.parent / name)
