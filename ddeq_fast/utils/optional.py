"""Packages that only some parts need: imported on use, with a message that says how to get them."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def install(extra: str) -> str:
    """The command that installs the packages of an extra."""
    return f'pip install "ddeq_fast[{extra}]"'


def require(module: str, extra: str) -> ModuleType:
    """The module; raises ImportError naming the extra that brings it if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed for this: {install(extra)} ({error})") from error


def available(module: str) -> bool:
    """Whether the top-level module is installed; it is not imported."""
    return importlib.util.find_spec(module) is not None
