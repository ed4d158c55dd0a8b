"""What code inside is told of the derivatives that are wanted of it, in this thread alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TWICE: ContextVar[bool] = ContextVar("twice", default=False)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Evaluations of networks inside have second derivatives: their attention keeps off the fused kernels, which lack
    them, and takes more memory."""
    token = _TWICE.set(True)
    try:
        yield
    finally:
        _TWICE.reset(token)


def wanted_twice() -> bool:
    """Whether this is inside `twice_differentiable`."""
    return _TWICE.get()
