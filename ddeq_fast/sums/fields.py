"""The op: potential and field of a charged cloud, with exact derivatives on every backend.

For charges v_j at positions y_j and a radial kernel k,

    u(x) = sum_j v_j k(x, y_j),        f(x) = sum_j v_j grad_1 k(x, y_j).

Kernel sums, MMD, its witness, its gradients and its Hessian are all of this form (see docs of `mmd`).
"""

from __future__ import annotations

from torch import Tensor

from ddeq_fast.sums import backends
from ddeq_fast.sums.operators import evaluate
from ddeq_fast.sums.radial import RadialKernel, Riesz
from ddeq_fast.utils.validation import check_charges, check_cloud


def potential(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    charges: Tensor | None = None,
    backend: str = "auto",
    tolerance: float | None = None,
) -> Tensor:
    """Potential u(x_i) = sum_j v_j k(x_i, y_j) of charges at y, differentiable in x, y and the charges.

    Args:
        x: targets, (m, d) or (B, m, d), floating point.
        y: sources, (n, d) or (B, n, d), same dtype and device.
        kernel: radial kernel; `Riesz(1)` if None.
        charges: v, (n,) or (B, n), of any sign; ones if None. A zero charge is padding.
        backend: a name from `ddeq_fast.sums.backends.names()`, or "auto".
        tolerance: in (0, 1), the relative error |u - u*| / |u*| that each cloud's potentials may have, and fields
            likewise: u* is exact, norms run over the targets, single ones may be worse. "auto" then takes trees where
            they are faster (in at most three dimensions on a CPU), which compare themselves with exact sums at some
            targets; `certify.certified_error` is a look at more of them. None, and exact backends: up to rounding.

    Returns:
        u, (m,) or (B, m).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty cloud, an unknown backend, a tolerance
            that it does not promise.
    """
    return _evaluate(x, y, kernel, charges, backends.to_tolerance(backend, tolerance), True, False)[0]


def field(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    charges: Tensor | None = None,
    backend: str = "auto",
    tolerance: float | None = None,
) -> Tensor:
    """Field f(x_i) = sum_j v_j grad_1 k(x_i, y_j), shape of x; arguments and errors as in `potential`.

    Coincident points exert no force on each other.
    """
    return _evaluate(x, y, kernel, charges, backends.to_tolerance(backend, tolerance), False, True)[1]


def potential_and_field(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    charges: Tensor | None = None,
    backend: str = "auto",
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(`potential`, `field`) in one pass over the pairs."""
    return _evaluate(x, y, kernel, charges, backends.to_tolerance(backend, tolerance), True, True)


def check_kernel(kernel: RadialKernel | None) -> RadialKernel:
    """The kernel, `Riesz(1)` if None; raises TypeError for anything else."""
    if kernel is None:
        return Riesz(1.0)
    if not isinstance(kernel, RadialKernel):
        raise TypeError(f"kernel must be a RadialKernel such as Riesz(1.0), got {type(kernel).__name__}")
    return kernel


def _evaluate(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None,
    charges: Tensor | None,
    backend: str,
    potential: bool,
    field: bool,
) -> tuple[Tensor, Tensor]:
    """Both sums, an empty tensor for one that is not wanted."""
    check_cloud("x", x)
    check_cloud("y", y, like=("x", x))
    v = check_charges("charges", charges, y)
    kernel, backend = check_kernel(kernel), backends.check(backend)
    if x.dim() == 3:
        return evaluate(x, y, v, kernel, backend, potential, field)
    u, f = evaluate(x[None], y[None], v[None], kernel, backend, potential, field)
    return (u[0] if potential else u), (f[0] if field else f)
