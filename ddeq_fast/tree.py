"""Nested containers of tensors that share a leading batch axis: pick some samples, or join chunks."""

from __future__ import annotations

from torch import Tensor


def select(tree, index: Tensor):
    """`tree` with the batch axis of every tensor indexed; tuples, named tuples, lists and dicts are walked."""
    if isinstance(tree, Tensor):
        return tree[index]
    if isinstance(tree, dict):
        return {key: select(value, index) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(select(value, index) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(select(value, index) for value in tree)
    return tree
