"""The op: potential and field of a charged cloud, with exact derivatives on every backend.

For charges v_j at positions y_j and a radial kernel k,

    u(x) = sum_j v_j k(x, y_j),        f(x) = sum_j v_j grad_1 k(x, y_j).

Kernel sums, MMD, its witness, its gradients and its Hessian are all of this form (see docs of `mmd`).
"""

from __future__ import annotations

from torch import Tensor

from ddeq_fast.sums import backends
from ddeq_fast.sums.operators import encode, evaluate
from ddeq_fast.sums.radial import RadialKernel, Riesz
from ddeq_fast.utils.validation import check_charges, check_cloud


def potential(
    x: Tensor,
    y: Tensor,
    charges: Tensor | None = None,
    kernel: RadialKernel | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Potential u(x_i) = sum_j v_j k(x_i, y_j) of charges at y, differentiable in x, y and the charges.

    Args:
        x: targets, (m, d) or (B, m, d), floating point.
        y: sources, (n, d) or (B, n, d), same dtype and device.
        charges: v, (n,) or (B, n), of any sign; ones if None. A zero charge is padding.
        kernel: radial kernel; `Riesz(1)` if None.
        backend: a name from `ddeq_fast.sums.backends.names()`, or "auto".

    Returns:
        u, (m,) or (B, m).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty cloud, an unknown backend.
    """
    return _evaluate(x, y, charges, kernel, backend, True, False)[0]


def field(
    x: Tensor,
    y: Tensor,
    charges: Tensor | None = None,
    kernel: RadialKernel | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Field f(x_i) = sum_j v_j grad_1 k(x_i, y_j), shape of x; arguments and errors as in `potential`.

    Coincident points exert no force on each other.
    """
    return _evaluate(x, y, charges, kernel, backend, False, True)[1]


def potential_and_field(
    x: Tensor,
    y: Tensor,
    charges: Tensor | None = None,
    kernel: RadialKernel | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(`potential`, `field`) in one pass over the pairs."""
    return _evaluate(x, y, charges, kernel, backend, True, True)


def check_kernel(kernel: RadialKernel | None) -> RadialKernel:
    """The kernel, `Riesz(1)` if None; raises TypeError for anything else."""
    if kernel is None:
        return Riesz(1.0)
    if not isinstance(kernel, RadialKernel):
        raise TypeError(f"kernel must be a RadialKernel such as Riesz(1.0), got {type(kernel).__name__}")
    return kernel


def _evaluate(x, y, charges, kernel, backend, want_u, want_f):
    check_cloud("x", x)
    check_cloud("y", y, like=("x", x))
    v = check_charges("charges", charges, y)
    kernel = check_kernel(kernel)
    batched = x.dim() == 3
    if not batched:
        x, y, v = x[None], y[None], v[None]
    u, f = evaluate(x, y, v, encode(kernel), backends.check(backend), want_u, want_f)
    u, f = (u if want_u else None), (f if want_f else None)
    return tuple(out if out is None or batched else out[0] for out in (u, f))
