"""Ctrl-C that lets the work at hand be finished and saved."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager


@contextmanager
def stop_on_signal():
    """An event that SIGINT and SIGTERM set, once; the handlers before are back after that, and at the end."""
    stopped, before = threading.Event(), {}

    def restore():
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not of Python's
        before.clear()

    def stop(number, frame):
        stopped.set()
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    try:
        yield stopped
    finally:
        restore()
