"""The registry of backends: what one is, adding one by `register`, and choosing one by name or for clouds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils.validation import check_number


class Backend(Protocol):
    """Two sums, on batched clouds x (B, m, d), y (B, n, d) and charges v (B, n); writing d_ij = x_i - y_j.

    Implementations need no autograd: `operators` supplies the derivatives. A backend, an object or a module, may add
    energy(z, w, kernel, field), which returns sum_ij w_i w_j k(z_i, z_j), (B,), with the potential and the field or
    None of z (B, n, d) with charges w (B, n) on itself, where it has something faster than `evaluate` and a sum.

    One that can be less exact than rounding has to_tolerance(tolerance), the backend within that relative error (see
    `fields.potential`), cheaper(tolerance, x, y, kernel), whether that is faster than exact sums, and `tolerance`, what
    it keeps to where none is asked for. One whose error has no bound has `rough = True`.
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


class Sharded(Backend, Protocol):
    """A backend whose clouds lie in shards over several processes: see `ring`."""

    sharded: bool

    def tracked(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors, one of them made to need a gradient if one in another process does."""

    def anywhere(self, *flags: bool) -> list[bool]:
        """Which flags are set in any process."""

    def whole(self, part: Tensor) -> Tensor:
        """Sum over the processes that counts once in the sum of their losses."""

    def normalised(self, name: str, weights: Tensor) -> Tensor:
        """Weights as shares of the mass of all processes."""


Offer = Callable[[Tensor, Tensor, RadialKernel], bool]


class _Entry(NamedTuple):
    backend: Backend
    offer: Offer | None


_REGISTRY: dict[str, _Entry] = {}  # in the order in which "auto" tries them


def register(name: str, backend: Backend, *, prefer: bool = False, offer: Offer | None = None) -> None:
    """Make `backend` known as `name`; if `prefer`, "auto" tries it before those registered so far.

    `offer(x, y, kernel)` says whether "auto" tries it at all on clouds (B, m, d) and (B, n, d): always if None.

    Raises ValueError if the name is taken.
    """
    if name == "auto" or name in _REGISTRY:
        raise ValueError(f"backend name {name!r} is taken")
    before = {} if prefer else dict(_REGISTRY)
    after = dict(_REGISTRY) if prefer else {}
    _REGISTRY.clear()
    _REGISTRY.update({**before, name: _Entry(backend, offer), **after})


def names() -> list[str]:
    """Registered backends, in the order in which "auto" tries them."""
    return list(_REGISTRY)


def get(name: str) -> Backend:
    """The backend registered as `name`, within a tolerance if that follows, as in "tree@0.001".

    Raises ValueError if there is none or it promises no tolerance, TypeError if the name is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend must be a string, got {type(name).__name__}")
    plain, tolerance = _split(name)
    if plain not in _REGISTRY:
        raise ValueError(f"backend must be one of auto, {', '.join(_REGISTRY)}; got {name!r}")
    backend = _REGISTRY[plain].backend
    if tolerance is None:
        return backend
    if getattr(backend, "rough", False):
        raise ValueError(f"backend {plain!r} promises no tolerance, got {tolerance:g}")
    return backend.to_tolerance(tolerance) if hasattr(backend, "to_tolerance") else backend


def _split(name: str) -> tuple[str, float | None]:
    """A name and its tolerance, None without one; raises ValueError for a tolerance that is no number in (0, 1)."""
    plain, mark, text = name.partition("@")
    if not mark:
        return name, None
    try:
        return plain, check_number("tolerance", float(text), high=1.0)
    except ValueError:
        raise ValueError(f"tolerance of backend must be a number in (0, 1), got {name!r}") from None


def base(name: str) -> str:
    """A name without its tolerance; raises ValueError for one that is none."""
    return _split(name)[0]


def to_tolerance(name: str, tolerance: float | None) -> str:
    """The name of a backend within a tolerance in (0, 1), or of any if it is None; raises as `get`."""
    if tolerance is None:
        return check(name)
    tolerance = check_number("tolerance", tolerance, high=1.0)
    if "@" in check(name):
        raise ValueError(f"tolerance must be None where backend has one, got {tolerance:g} and {name!r}")
    return check(f"{name}@{tolerance!r}")


def exact(name: str) -> bool:
    """Whether rounding is all that the backend of that name is off by; raises as `get`."""
    backend = get(name)
    return not (hasattr(backend, "to_tolerance") or getattr(backend, "rough", False))


def tolerance(name: str) -> float | None:
    """The relative error that a backend of that name may make; None if it is exact, or an estimate without a bound.

    Raises as `check`.
    """
    plain, asked = _split(check(name))
    return asked if asked is not None or plain == "auto" else getattr(get(plain), "tolerance", None)


def unsupported(name: str, x: Tensor, y: Tensor, kernel: RadialKernel) -> str | None:
    """Why the backend of that name cannot run these inputs, or None if it can; raises as `get`."""
    return get(name).unsupported(x, y, kernel)


def offered(name: str, x: Tensor, y: Tensor, kernel: RadialKernel) -> bool:
    """Whether "auto" takes this backend, if it can run these inputs and none before it can."""
    offer = _REGISTRY[name].offer
    return offer is None or offer(x, y, kernel)


def resolve(name: str, x: Tensor, y: Tensor, kernel: RadialKernel) -> str:
    """The name of the backend to use for these inputs.

    Raises ValueError if `name` is unknown or cannot run them (with its reason).
    """
    plain, tolerance = _split(check(name))
    if plain == "auto":
        for one, entry in _REGISTRY.items() if tolerance is not None else ():
            if hasattr(entry.backend, "cheaper") and entry.backend.cheaper(tolerance, x, y, kernel):
                return f"{one}@{tolerance!r}"
        able = (one for one in _REGISTRY if offered(one, x, y, kernel) and unsupported(one, x, y, kernel) is None)
        return next(able)
    reason = unsupported(name, x, y, kernel)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run this: {reason}")
    return name


def check(name: str) -> str:
    """`name`, if it is "auto" or a registered backend; raises as `get`."""
    if not isinstance(name, str) or base(name) != "auto":
        get(name)
    return name


def sharded(name: str) -> Sharded | None:
    """The backend of that name if its clouds lie in shards over several processes, else None; raises as `get`."""
    backend = None if base(check(name)) == "auto" else get(name)
    return backend if getattr(backend, "sharded", False) else None  # type: ignore[return-value]


def check_whole(user: str, name: str) -> str:
    """`check`, and a ValueError naming its user for a backend whose clouds lie in shards."""
    if sharded(check(name)):
        raise ValueError(f"{user} needs whole clouds in every process: backend must not be {name!r}, a sum over shards")
    return name
