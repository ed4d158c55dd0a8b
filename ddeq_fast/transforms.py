"""Whether forward mode or a transform of `torch.func` is at work. Torch knows, but has no public words for it.

Should a later torch lack these names, the answers are those that cost time, not those that cost right values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def active() -> bool:
    """Whether forward mode or a transform is at work at all: a custom operator drops tangents and cannot be mapped."""
    return _active() or getattr(forward_ad, "_current_level", 0) >= 0


def mapped(tensor: Tensor) -> bool:
    """Whether `tensor` stands for many under `torch.vmap`, so that none of its values can be read."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False
