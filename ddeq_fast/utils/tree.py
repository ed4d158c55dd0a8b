"""Nested containers of tensors that share a leading batch axis: pick some samples, or join chunks."""

from __future__ import annotations

from torch import Tensor


def select(tree, index: Tensor):
    """`tree` with the batch axis of every tensor indexed."""
    return apply(lambda tensor: tensor[index], tree)


def apply(function, tree):
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


def leaves(tree) -> list[Tensor]:
    """The tensors of `tree`, in order."""
    found: list[Tensor] = []
    apply(found.append, tree)
    return found
