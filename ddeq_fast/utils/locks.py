"""Locks that keep a second process out of files that one is writing; they end with the process that holds them."""

from __future__ import annotations

import errno
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
# Where a lock of Windows lies, which nobody else can read: beyond who holds it.
_PLACE = 1 << 20


class InUse(OSError):
    """Another process, or another thread, is writing there."""


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`, which is made, and deleted afterwards.

    The system lets go of it when the process ends, however that comes; a file left behind locks nothing. Where the
    file system has no locks, a warning says so and nothing is kept out.

    Raises:
        InUse: it is held; the message names `what` and, where known, the process.
        OSError: the file cannot be made.
    """
    descriptor = _acquire(path, what)
    try:
        yield
    finally:
        # Deleted while held, or another could delete the file of its successor; Windows deletes no open file.
        if os.name == "posix":
            with suppress(OSError):
                os.unlink(path)
        os.close(descriptor)


def _acquire(path: Path, what: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                _lock(descriptor)
            except OSError as error:
                if error.errno in _TAKEN:
                    raise InUse(f"{what} is in use{_holder(descriptor)}: wait for its end, or stop it") from None
                warnings.warn(f"{what} cannot be locked, keep other processes out of it: {error}", stacklevel=4)
            with suppress(OSError):  # gone, or another's: its holder before has just deleted it
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    with suppress(OSError):  # a full disk has no place for it
                        os.ftruncate(descriptor, 0)
                        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _PLACE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(descriptor: int) -> str:
    with suppress(OSError, UnicodeDecodeError):
        text = os.read(descriptor, 300).decode().strip()
        if text:
            return f" by {text}"
    return " by another process"
