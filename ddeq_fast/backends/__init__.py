"""Backends of the op: how the sums over charges are carried out. A backend is added by `register`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ddeq_fast.backends.memory import memory_budget, set_memory_budget
from ddeq_fast.radial import RadialKernel

__all__ = ["Backend", "check", "get", "memory_budget", "names", "register", "resolve", "set_memory_budget"]


class Backend(Protocol):
    """Two sums, on batched clouds x (B, m, d), y (B, n, d) and charges v (B, n); writing d_ij = x_i - y_j.

    Implementations need no autograd: the op supplies the derivatives. A backend may add energy(z, w, kernel, field),
    which returns sum_ij w_i w_j k(z_i, z_j), (B,), with the potential and the field or None of z (B, n, d) with charges
    w (B, n) on itself, where it has something faster than `evaluate` and a sum.
    """

    def unsupported(self, x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
        """Why these inputs cannot run here, or None if they can. Must not import anything heavy twice."""

    def evaluate(
        self, x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, potential: bool, field: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """u_i = sum_j v_j k(d_ij), shape (B, m), and f_i = sum_j v_j phi d_ij, shape (B, m, d); None if unwanted."""

    def tangent(
        self, x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of (u, f) as x moves along s (B, m, d) and y along t (B, n, d)."""


_BACKENDS: dict[str, Backend] = {}
_PREFERENCE: list[str] = []
_OFFERED: dict[str, Callable[[Tensor, Tensor], bool] | None] = {}


def register(
    name: str, backend: Backend, *, prefer: bool = False, offer: Callable[[Tensor, Tensor], bool] | None = None
) -> None:
    """Make `backend` known as `name`; if `prefer`, "auto" tries it before those registered so far.

    `offer(x, y)` says for which clouds "auto" tries it at all: for all if None.
    """
    if name == "auto" or name in _BACKENDS:
        raise ValueError(f"backend name {name!r} is taken")
    _BACKENDS[name] = backend
    _PREFERENCE.insert(0 if prefer else len(_PREFERENCE), name)
    _OFFERED[name] = offer


def names() -> list[str]:
    """Registered backends, in the order in which "auto" tries them."""
    return list(_PREFERENCE)


def resolve(name: str, x: Tensor, y: Tensor, kernel: RadialKernel) -> str:
    """The name of the backend to use for these inputs.

    Raises ValueError if `name` is unknown or cannot run them (with its reason).
    """
    if name == "auto":
        return next(n for n in _PREFERENCE if _offered(n, x, y) and _BACKENDS[n].unsupported(x, y, kernel) is None)
    reason = get(name).unsupported(x, y, kernel)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run this: {reason}")
    return name


def _offered(name: str, x: Tensor, y: Tensor) -> bool:
    return _OFFERED[name] is None or _OFFERED[name](x, y)


def check(name: str) -> str:
    """`name`, if it is "auto" or a registered backend; raises as `get`."""
    if name != "auto":
        get(name)
    return name


def get(name: str) -> Backend:
    """The backend registered as `name`; raises ValueError if there is none, TypeError if it is no string."""
    if not isinstance(name, str):
        raise TypeError(f"backend must be a string, got {type(name).__name__}")
    if name not in _BACKENDS:
        raise ValueError(f"backend must be one of auto, {', '.join(_PREFERENCE)}; got {name!r}")
    return _BACKENDS[name]


from ddeq_fast.backends import compiled, dense, keops, sliced, triton  # noqa: E402

register("dense", dense)
register("compiled", compiled, prefer=True, offer=compiled.worthwhile)
register("keops", keops, offer=lambda x, y: False)
# An estimate: only when named.
register("sliced", sliced.Sliced(), offer=lambda x, y: False)
# Less precise: only when named.
register("triton-tf32", triton.Triton("tf32"), offer=lambda x, y: False)
register("triton-bf16", triton.Triton("bf16"), offer=lambda x, y: False)
# Off a GPU it is interpreted: only when named.
register("triton", triton.Triton(), prefer=True, offer=lambda x, y: x.is_cuda)
