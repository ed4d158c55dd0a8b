"""Kernel losses of other packages: what `python -m bench peers` measures of them.

The loss is MMD^2 of two clouds with the kernel -|x - y|, the energy distance, with its gradient by the first cloud.
References are sums of plain differences in float64, by none of the methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bench.baselines import plain
from bench.large import time_and_memory
from ddeq_fast import Riesz, squared_mmd
from ddeq_fast.sums import backends
from ddeq_fast.utils.optional import available, require

# (d, n) of both clouds.
SIZES = ((3, 1000), (3, 5000), (3, 20_000), (128, 2000))
# Points of which matrices of all pairs are kept, at most.
MATRICES = 5000
# Points of the first cloud whose gradients are checked, and rows of distances in a block of the reference.
CHECKED, BLOCK = 500, 500
# Of a loss in a training: what is compiled once pays.
CALLS = 1000


def _ours(x: Tensor, y: Tensor) -> Tensor:
    with backends.expected_calls(CALLS):
        return squared_mmd(x, y)


def _dense(x: Tensor, y: Tensor) -> Tensor:
    return plain.squared_mmd(x[None], y[None])[0]


def _geomloss(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
    def value(x: Tensor, y: Tensor) -> Tensor:
        return 2 * require("geomloss", "geomloss").SamplesLoss("energy", backend=backend)(x, y)

    return value


def _keops(x: Tensor, y: Tensor) -> Tensor:
    lazy = require("pykeops.torch", "keops").LazyTensor

    def mean(a: Tensor, b: Tensor) -> Tensor:
        distances = ((lazy(a[:, None]) - lazy(b[None])) ** 2).sum(-1).sqrt()
        return distances.sum(1).sum() / (len(a) * len(b))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


class Method(NamedTuple):
    """A loss of x (n, d) and y (n, d). needs: packages. matrices: it keeps some of all pairs."""

    value: Callable[[Tensor, Tensor], Tensor]
    needs: tuple[str, ...] = ()
    matrices: bool = False


METHODS = {
    "ddeq_fast": Method(_ours),
    "torch.cdist": Method(_dense, matrices=True),
    "geomloss, tensorized": Method(_geomloss("tensorized"), ("geomloss",), matrices=True),
    "geomloss, online": Method(_geomloss("online"), ("geomloss", "pykeops")),
    "KeOps, LazyTensor": Method(_keops, ("pykeops",)),
}


def refusal(name: str) -> str | None:
    """Why a method does not run here, or None."""
    method = METHODS[name]
    for package in method.needs:
        if not available(package):
            return f"{package} is not installed"
    if "pykeops" not in method.needs:
        return None
    probe = torch.empty(1, 1, 3)
    return backends.get("keops").unsupported(probe, probe, Riesz(1.0))


def clouds(d: int, n: int) -> tuple[Tensor, Tensor]:
    """Two normal clouds (n, d), one apart from the other by half a standard deviation in each coordinate."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator) + 0.5


def value_and_gradient(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its derivative by x (n, d)."""
    x = x.detach().requires_grad_()
    value = METHODS[name].value(x, y)
    return value.detach(), torch.autograd.grad(value, x)[0]


def reference(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its derivative by the first `CHECKED` points of x, in float64."""
    x, y = x.double(), y.double()

    def total(rows: Tensor, points: Tensor) -> Tensor:
        return torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist").sum()

    def means(rows: Tensor) -> Tensor:
        return 2 * (total(rows, y) / len(y) - total(rows, x) / len(x)) / len(x)

    rows = x[:CHECKED].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(means(rows), rows)
    crossed = sum(means(rows) + total(rows, x) / len(x) ** 2 for rows in x.split(BLOCK))
    return crossed - sum(total(rows, y) for rows in y.split(BLOCK)) / len(y) ** 2, gradient


def measure(name: str, x: Tensor, y: Tensor, exact: tuple[Tensor, Tensor]) -> dict:
    """Time and memory of one method, and errors of the value and of the gradient against `exact`."""
    found = [part.double() for part in value_and_gradient(name, x, y)]  # compiled, if it needs to be
    found[1] = found[1][:CHECKED]
    value, gradient = (float((part - right).norm() / right.norm()) for part, right in zip(found, exact, strict=True))
    cost = time_and_memory(lambda: value_and_gradient(name, x, y))
    n, d = x.shape
    return {"method": name, "d": d, "n": n, **cost, "error_value": value, "error_gradient": gradient}
