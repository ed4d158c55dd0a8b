"""The op: potential and field of a charged cloud, with exact derivatives on every backend.

For charges v_j at positions y_j and a radial kernel k,

    u(x) = sum_j v_j k(x, y_j),        f(x) = sum_j v_j grad_1 k(x, y_j).

Kernel sums, MMD, its witness, its gradients and its Hessian are all of this form (see docs of `mmd`).
"""

from __future__ import annotations

from torch import Tensor

from ddeq_fast.sums import backends
from ddeq_fast.sums.certify import certify_sums, check_certify
from ddeq_fast.sums.operators import evaluate
from ddeq_fast.sums.radial import RadialKernel, check_kernel
from ddeq_fast.utils import transforms
from ddeq_fast.utils.validation import check_charges, check_cloud


def potential(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    charges: Tensor | None = None,
    backend: str = "auto",
    tolerance: float | None = None,
    certify: int | None = None,
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
            targets. None, and exact backends: up to rounding.
        certify: how many random targets are compared with exact sums in float64, each of which costs n pairs; none if
            None. An error beyond the tolerance is a RuntimeWarning, and `ddeq_fast.sums.certify.certificates` collects
            what was found: without one of both there is nobody to be told, which is a ValueError. What backward passes
            sum is not compared.

    Returns:
        u, (m,) or (B, m).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, NaN, an empty cloud, an unknown backend, a tolerance
            that it does not promise, `certify` over shards or where values cannot be read.
    """
    return _evaluate(x, y, kernel, charges, backends.to_tolerance(backend, tolerance), certify, True, False)[0]


def field(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    charges: Tensor | None = None,
    backend: str = "auto",
    tolerance: float | None = None,
    certify: int | None = None,
) -> Tensor:
    """Field f(x_i) = sum_j v_j grad_1 k(x_i, y_j), shape of x; arguments and errors as in `potential`.

    Coincident points exert no force on each other.
    """
    return _evaluate(x, y, kernel, charges, backends.to_tolerance(backend, tolerance), certify, False, True)[1]


def potential_and_field(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None = None,
    *,
    charges: Tensor | None = None,
    backend: str = "auto",
    tolerance: float | None = None,
    certify: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(`potential`, `field`) in one pass over the pairs."""
    return _evaluate(x, y, kernel, charges, backends.to_tolerance(backend, tolerance), certify, True, True)


def _evaluate(
    x: Tensor,
    y: Tensor,
    kernel: RadialKernel | None,
    charges: Tensor | None,
    backend: str,
    certify: int | None,
    potential: bool,
    field: bool,
) -> tuple[Tensor, Tensor]:
    """Both sums, an empty tensor for one that is not wanted."""
    check_cloud("x", x)
    check_cloud("y", y, like=("x", x))
    v, kernel, batched = check_charges("charges", charges, y), check_kernel(kernel), x.dim() == 3
    samples = None if certify is None else transforms.outside_the_graph(check_certify, certify, backend, x)
    if not batched:
        x, y, v = x[None], y[None], v[None]
    u, f = evaluate(x, y, v, kernel, backend, potential, field)
    if samples is not None:
        found = (u if potential else None), (f if field else None)
        transforms.outside_the_graph(certify_sums, found, (x, y, v), kernel, backend, samples, batched)
    return (u[0] if potential and not batched else u), (f[0] if field and not batched else f)
