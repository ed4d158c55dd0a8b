"""Padding in the network: rows that are zeroed, and weights as they enter attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq_fast.utils.validation import values_readable


def zeroed(x: Tensor, present: Tensor | None) -> Tensor:
    """x (B, n, dim) with zeros where not `present`, boolean (B, n, 1); x itself if None."""
    return x if present is None else torch.where(present, x, 0)


def without_padding(x: Tensor, weights: Tensor) -> Tensor:
    """x (B, n, dim) with zeros where its weights (B, n) are zero.

    A far value there overflows, which a weight of zero does not undo.
    """
    return x.masked_fill((weights <= 0)[..., None], 0)


def attention_bias(weights: Tensor) -> Tensor | None:
    """log w, (B, 1, 1, m), of weights (B, m): a point of weight w counts as w points, one of weight zero not at all.

    None where all weights are one, which is the faster path of the attention kernels.
    """
    if not values_readable(weights) or bool((weights != 1).any()):
        return log_weights(weights)
    return None


def log_weights(weights: Tensor) -> Tensor:
    """log w as an attention bias (B, 1, 1, m), -inf for padding, without a gradient there."""
    present = weights > 0
    logs = torch.where(present, weights, 1).log()
    return logs.masked_fill(~present, -torch.inf)[:, None, None]
