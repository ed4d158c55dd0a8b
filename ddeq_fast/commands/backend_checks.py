"""Every backend tried on every device: potential and field of small clouds against exact sums in float64."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor

from ddeq_fast.sums import backends
from ddeq_fast.sums.certify import certified_error
from ddeq_fast.sums.fields import potential_and_field
from ddeq_fast.sums.radial import Riesz

_KERNEL = Riesz(1.0)
_LINE, _CLOUD = 24, 200  # points of the clouds in one dimension and in three
_CHECKED = 64  # targets that are compared
_MOST = 1 << 20  # points, of clouds that are summed to a tolerance: small ones are summed exactly
# Relative errors that a backend may have: of rounding in float32, and of estimates that know no bound.
_EXACT, _ROUGH = 1e-4, 5e-2


def check_all(devices: list[str]) -> list[dict[str, Any]]:
    """What `check` finds of every backend on each of the devices, with their names."""
    return [
        {"backend": name, "device": device, **check(name, device)} for name in backends.names() for device in devices
    ]


def check(name: str, device: str) -> dict[str, Any]:
    """Whether the backend of that name gives right sums on that device.

    Returns:
        "works": whether it does; "able": False where it cannot run there, which is no fault; "reason": why it does not
        work, in words, or None; "errors": for each dimension that was tried those of potential and field, relative,
        norm-wise.
    """
    found: dict[str, Any] = {"works": False, "able": True, "reason": None, "errors": {}}
    allowed = backends.tolerance(name) or (_EXACT if backends.exact(name) else _ROUGH)
    for x in (_line(device), _cloud(name, device)):
        if reason := backends.unsupported(name, x, x, _KERNEL):
            return {**found, "able": False, "reason": reason}
        try:
            with redirect_stdout(sys.stderr):  # KeOps prints while it compiles
                errors = _errors(name, x)
        except Exception as error:  # whatever is wrong with it is what is asked
            return {**found, "reason": f"it fails: {type(error).__name__}: {_first_line(error)}"}
        found["errors"][str(x.shape[1])] = errors
        for part, off in errors.items():
            if not off <= allowed:
                reason = f"its {part} in dimension {x.shape[1]} is off by {off:.1g}, more than {allowed:g}"
                return {**found, "reason": reason}
    return {**found, "works": True}


def _errors(name: str, x: Tensor) -> dict[str, float]:
    results = potential_and_field(x, x, _KERNEL, backend=name)
    return {
        part: float(certified_error(result, x, x, _KERNEL, samples=_CHECKED))
        for part, result in zip(("potential", "field"), results, strict=True)
    }


def _line(device: str) -> Tensor:
    """In one dimension sliced sums, too, are exact."""
    return torch.linspace(-1, 1, _LINE, device=device)[:, None]


def _cloud(name: str, device: str) -> Tensor:
    """Normal points in three dimensions, as many as a backend to a tolerance does not sum exactly."""
    n, backend, allowed = _CLOUD, backends.get(name), backends.tolerance(name)
    if allowed is not None and hasattr(backend, "cheaper"):
        one = torch.zeros(1, 1, 1)
        while n < _MOST and not backend.cheaper(allowed, one.expand(1, n, 3), one.expand(1, n, 3), _KERNEL):
            n *= 2
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=draw).to(device)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no reason given")
