"""Backends of the op: how the sums over charges are carried out. A backend is added by `register`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ddeq_fast.sums.backends.memory import memory_budget, set_memory_budget
from ddeq_fast.sums.radial import RadialKernel

__all__ = [
    "Backend",
    "check",
    "check_whole",
    "get",
    "memory_budget",
    "names",
    "register",
    "resolve",
    "set_memory_budget",
    "sharded",
]


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
Offer = Callable[[Tensor, Tensor, RadialKernel], bool]
_OFFERED: dict[str, Offer | None] = {}


def register(name: str, backend: Backend, *, prefer: bool = False, offer: Offer | None = None) -> None:
    """Make `backend` known as `name`; if `prefer`, "auto" tries it before those registered so far.

    `offer(x, y, kernel)` says whether "auto" tries it at all on clouds (B, m, d) and (B, n, d): always if None.
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
        return next(
            name
            for name in _PREFERENCE
            if offered(name, x, y, kernel) and _BACKENDS[name].unsupported(x, y, kernel) is None
        )
    reason = get(name).unsupported(x, y, kernel)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run this: {reason}")
    return name


def offered(name: str, x: Tensor, y: Tensor, kernel: RadialKernel) -> bool:
    """Whether "auto" takes this backend, if it can run these inputs and none before it can."""
    return _OFFERED[name] is None or _OFFERED[name](x, y, kernel)


def check(name: str) -> str:
    """`name`, if it is "auto" or a registered backend; raises as `get`."""
    if name != "auto":
        get(name)
    return name


def sharded(name: str) -> Backend | None:
    """The backend of that name if its clouds lie in shards over several processes, else None; raises as `get`."""
    backend = None if name == "auto" else get(name)
    return backend if getattr(backend, "sharded", False) else None


def check_whole(user: str, name: str) -> str:
    """`check`, and a ValueError naming its user for a backend whose clouds lie in shards."""
    if sharded(check(name)):
        raise ValueError(f"{user} needs whole clouds in every process: backend must not be {name!r}, a sum over shards")
    return name


def get(name: str) -> Backend:
    """The backend registered as `name`; raises ValueError if there is none, TypeError if it is no string."""
    if not isinstance(name, str):
        raise TypeError(f"backend must be a string, got {type(name).__name__}")
    if name not in _BACKENDS:
        raise ValueError(f"backend must be one of auto, {', '.join(_PREFERENCE)}; got {name!r}")
    return _BACKENDS[name]


from ddeq_fast.sums.backends import compiled, costs, dense, keops, ring, sliced, triton  # noqa: E402


def _only_when_named(x: Tensor, y: Tensor, kernel: RadialKernel) -> bool:
    return False


register("dense", dense)
# On the CPU the measured table decides.
register("compiled", compiled, prefer=True, offer=functools.partial(costs.worthwhile, "compiled"))
register("keops", keops, offer=_only_when_named)  # slower than the others wherever it was measured
register("ring", ring.Ring(), offer=_only_when_named)  # a sum over processes, which only they can mean
register("sliced", sliced.Sliced(), offer=_only_when_named)  # an estimate
register("triton-tf32", triton.Triton("tf32"), offer=_only_when_named)  # less precise
register("triton-bf16", triton.Triton("bf16"), offer=_only_when_named)
# On a GPU, not measured: the kernels move no matrix through memory, which bounds all else there. Off it they are
# interpreted.
register("triton", triton.Triton(), prefer=True, offer=lambda x, y, kernel: x.is_cuda)
