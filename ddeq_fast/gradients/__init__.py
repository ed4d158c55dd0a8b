"""Derivatives of a fixed point, by name: "phantom", "ift", "bilevel"; others are added by `register`."""

from __future__ import annotations

from ddeq_fast.gradients.bilevel import Bilevel
from ddeq_fast.gradients.implicit import Backward, BackwardInfo, ImplicitFunction, Phantom
from ddeq_fast.utils.validation import check_choice

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


__all__ = ["BACKWARDS", "Backward", "BackwardInfo", "Bilevel", "ImplicitFunction", "Phantom", "make"]
