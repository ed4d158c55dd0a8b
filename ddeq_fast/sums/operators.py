"""The door to the sums: batched, checked tensors in, sums out, differentiable on every backend.

`fields` and `mmd` are for users: they check their arguments. What else in the package needs sums calls `evaluate`,
`tangent` and `energy` here. Clouds x (B, m, d), y (B, n, d) and charges v (B, n) share dtype and device, a backend is a
name that is known, or "auto". How sums are carried out inside PyTorch is the matter of `functions` alone.
"""

from __future__ import annotations

from torch import Tensor

from ddeq_fast.sums import backends, functions
from ddeq_fast.sums.encoding import encode
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.utils import transforms


def evaluate(
    x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, backend: str, potential: bool, field: bool
) -> tuple[Tensor, Tensor]:
    """u_i = sum_j v_j k(x_i, y_j), (B, m), and f_i = sum_j v_j grad_1 k(x_i, y_j), (B, m, d).

    An empty tensor stands for one that is not wanted. Differentiable any number of times, in forward mode too, and
    under the transforms of `torch.func`.

    Raises ValueError if the backend cannot run this, or coordinates are too large or too small for float64.
    """
    return functions.evaluate(x, y, v, encode(kernel), backend, potential, field)


def tangent(
    x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: RadialKernel, backend: str
) -> tuple[Tensor, Tensor]:
    """Derivatives of (u, f) as x moves along s (B, m, d) and y along t (B, n, d); otherwise as `evaluate`."""
    return functions.tangent(x, y, v, s, t, encode(kernel), backend)


def energy(z: Tensor, w: Tensor, kernel: RadialKernel, backend: str) -> Tensor:
    """sum_ij w_i w_j k(z_i, z_j), (B,), of z (B, n, d) with charges w (B, n); otherwise as `evaluate`.

    One pass over the pairs gives the value and, where z needs it, the gradient.
    """
    return functions.energy(z, w, encode(kernel), backend)


def evaluate_plain(
    x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, backend: str, potential: bool, field: bool
) -> tuple[Tensor, Tensor]:
    """`evaluate` for loops over small clouds that need no gradient, whose squared distances their dtype holds.

    An operator takes as long as such a sum: without one there is no graph and no look at the size of coordinates.
    """
    if transforms.active():
        return evaluate(x, y, v, kernel, backend, potential, field)
    chosen = backends.get(backends.resolve(backend, x, y, kernel))
    u, f = chosen.evaluate(x, y, v, kernel, potential, field)
    return (x.new_empty(0) if u is None else u), (x.new_empty(0) if f is None else f)


def energy_plain(z: Tensor, w: Tensor, kernel: RadialKernel, backend: str) -> Tensor:
    """`energy` for the same loops as `evaluate_plain`."""
    if transforms.active():
        return energy(z, w, kernel, backend)
    chosen = backends.get(backends.resolve(backend, z, z, kernel))
    return functions.energy_sums(chosen, z, w, kernel, False)[0]
