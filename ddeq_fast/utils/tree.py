"""Nested containers of tensors that share a leading batch axis: pick some samples, or join parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def select(tree: T, index: Tensor | slice) -> T:
    """`tree` with the batch axis of every tensor indexed."""
    return apply(lambda tensor: tensor[index], tree)


def apply(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """`tree` with function(tensor) for every tensor; tuples, named tuples, lists and dicts are walked."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: apply(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(apply(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(apply(function, value) for value in tree)
    return tree


def joined(parts: Sequence[T], axis: int = 0) -> T:
    """Trees of one form, at least one, as one: every tensor is joined from its parts along an axis."""
    if len(parts) == 1:
        return parts[0]
    pieces = zip(*map(leaves, parts), strict=True)
    return apply(lambda _: torch.cat(next(pieces), axis), parts[0])


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of `tree`, in order."""
    found: list[Tensor] = []
    apply(found.append, tree)
    return found
