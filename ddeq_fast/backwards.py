"""Backward passes by name."""

from __future__ import annotations

from ddeq_fast.bilevel import Bilevel
from ddeq_fast.implicit import Backward, ImplicitFunction, Phantom
from ddeq_fast.validation import check_choice

BACKWARDS = {"phantom": Phantom, "ift": ImplicitFunction, "bilevel": Bilevel}


def make(backward: str | Backward, **options) -> Backward:
    """The backward of that name, with these options; a `Backward` is returned as it is."""
    if isinstance(backward, str):
        return BACKWARDS[check_choice("backward", backward, BACKWARDS)](**options)
    if not hasattr(backward, "attach") or isinstance(backward, type):
        raise TypeError(f"backward must be a name or a Backward, got {type(backward).__name__}")
    if options:
        raise TypeError(f"options {', '.join(options)} need a backward given by name, got {type(backward).__name__}")
    return backward
