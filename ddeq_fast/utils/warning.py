"""Warnings that point at the line of the caller, however deep in the package they arise."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from types import FrameType

import torch

# Code between a caller and a warning: this package, torch, and what wraps functions in contexts.
_BETWEEN = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    os.path.dirname(os.path.abspath(torch.__file__)) + os.sep,
    contextlib.__file__,
    "<eval_with_key>",  # graphs that torch compiled
)


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the innermost line outside this package and torch.

    Where there is none, as in the threads in which torch runs backward passes on a GPU, it is that of the main thread,
    which waits for them.
    """
    main = sys._current_frames().get(threading.main_thread().ident or 0)
    here = sys._getframe()
    frame = _outside(here) or _outside(main) or here
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    place = frame.f_code.co_filename, frame.f_lineno
    warnings.warn_explicit(message, category, *place, frame.f_globals.get("__name__"), registry)


def _outside(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    return frame
