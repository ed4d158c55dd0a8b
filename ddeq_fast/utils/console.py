"""What a command tells its user. Nobody may be listening: that never ends the work."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from ddeq_fast.utils.optional import require


def open_streams() -> None:
    """Give descriptors 0 to 2, where they are closed, to the null device: else the next file opened becomes one of
    them, and libraries that write to standard error write to it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


def say(text: str, error: bool = False, result: bool = False) -> None:
    """Print a line to standard output, or to standard error if `error`.

    A stream that is closed or cannot be written, a full disk or a pipe without a reader, is not written again.
    Characters that it lacks are escaped.

    Raises OSError if the text is the command's only `result` and cannot be written, but for a pipe without a reader.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    try:
        try:
            stream.write(text + "\n")
        except UnicodeEncodeError as wrong:
            stream.write(text.encode(wrong.encoding, "backslashreplace").decode(wrong.encoding) + "\n")
        stream.flush()
    except (OSError, ValueError) as wrong:  # ValueError: it was closed
        _silence(stream)
        if result and isinstance(wrong, OSError) and not isinstance(wrong, BrokenPipeError):
            raise


def _silence(stream: TextIO) -> None:
    """Send what the stream holds, and what comes, to nowhere: at the end Python would try again, and fail."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


class _Deaf:
    """Standard error for a progress bar: what cannot be written is dropped."""

    encoding = property(lambda self: getattr(sys.stderr, "encoding", None) or "ascii")

    def write(self, text: str) -> None:
        if sys.stderr is not None:
            with suppress(OSError, ValueError):
                sys.stderr.write(text)

    def flush(self) -> None:
        if sys.stderr is not None:
            with suppress(OSError, ValueError):
                sys.stderr.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError, AttributeError):
            return sys.stderr.isatty()
        return False

    def fileno(self) -> int:
        return sys.stderr.fileno()


# Seconds between lines of progress where there is no terminal.
QUIET = 60.0


class Bar:
    """A progress bar of steps on standard error; elsewhere than in terminals a line a minute, if there is text for it.

    Whatever goes wrong with it ends it alone.
    """

    def __init__(self, total: int, done: int, shown: bool = True):
        make = require("tqdm", "train").tqdm
        self._bar, file = None, _Deaf()
        self._total, self._done, self._shown, self._said = total, done, shown, time.monotonic()
        if shown and file.isatty():
            self._try(lambda: make(total=total, initial=done, unit="step", file=file))

    def _try(self, work: Callable[[], Any]) -> None:
        """Do it, or have no bar from now on."""
        try:
            found = work()
        except Exception as error:  # it reads its options from the environment, and the terminal may be gone
            self._bar = None
            say(f"no progress bar: {error}", error=True)
        else:
            self._bar = self._bar or found

    def step(self, text: str | None = None) -> None:
        """One more step is done; `text` stands behind the bar from now on."""
        self._done += 1
        if self._bar is None:
            if text is not None and self._shown and time.monotonic() - self._said >= QUIET:
                self._said = time.monotonic()
                say(f"step {self._done} of {self._total}: {text}", error=True)
        else:
            if text is not None:
                self._try(lambda: self._bar.set_postfix_str(text))
            self._try(lambda: self._bar.update())

    def say(self, text: str) -> None:
        """A line above the bar, or without one."""
        if self._bar is None:
            say(text, error=True)
        else:
            self._try(lambda: self._bar.write(text, file=_Deaf()))

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._try(lambda: self._bar.close())
