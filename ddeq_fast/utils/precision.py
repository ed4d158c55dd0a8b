"""The autocast state of a forward pass, which its backward pass, and the algebra around both, must not depend on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class Autocast:
    """Autocast of a type of device as it is now, to be entered elsewhere: `with state.entered(): ...`."""

    def __init__(self, device_type: str):
        self.device_type = device_type
        self.enabled = _available(device_type) and torch.is_autocast_enabled(device_type)
        self.dtype = torch.get_autocast_dtype(device_type) if self.enabled else None
        self.caches = torch.is_autocast_cache_enabled()

    def entered(self) -> AbstractContextManager:
        """A context in which autocast is as it was."""
        if not self.enabled:
            return disabled(self.device_type)
        return torch.autocast(self.device_type, self.dtype, cache_enabled=self.caches)


def disabled(device_type: str) -> AbstractContextManager:
    """A context without autocast."""
    if _available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)
