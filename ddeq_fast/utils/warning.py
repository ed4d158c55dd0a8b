"""Warnings that point at the line of the caller, however deep in the package they arise."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

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

    Where there is none, as in the threads in which torch runs backward passes on a GPU, it is at the outermost line.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    place = frame.f_code.co_filename, frame.f_lineno
    warnings.warn_explicit(message, category, *place, frame.f_globals.get("__name__"), registry)
