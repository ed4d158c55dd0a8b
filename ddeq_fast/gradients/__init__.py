"""Derivatives of a fixed point Z* = F(Z*, context), at a cost independent of the forward steps.

A gradient is a `Backward`, by name: "phantom", "ift", "bilevel", or one added by `register`. What its backward pass
took is a `BackwardInfo`. `jacobian_norm` measures how contractive F is, to be penalised in training.
"""

from __future__ import annotations

from ddeq_fast.gradients.base import Backward, BackwardInfo, make, names, register
from ddeq_fast.gradients.bilevel import Bilevel
from ddeq_fast.gradients.implicit import ImplicitFunction
from ddeq_fast.gradients.jacobian import jacobian_norm, residual_direction
from ddeq_fast.gradients.phantom import Phantom

register("phantom", Phantom)
register("ift", ImplicitFunction)
register("bilevel", Bilevel)

__all__ = [
    "Backward",
    "BackwardInfo",
    "Phantom",
    "ImplicitFunction",
    "Bilevel",
    "jacobian_norm",
    "residual_direction",
    "make",
    "names",
    "register",
]
