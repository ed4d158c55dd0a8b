"""The op: potential and field of a charged cloud, with exact derivatives on every backend.

For charges v_j at positions y_j and a radial kernel k,

    u(x) = sum_j v_j k(x, y_j),        f(x) = sum_j v_j grad_1 k(x, y_j).

Kernel sums, MMD, its witness, its gradients and its Hessian are all of this form (see docs of `mmd`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq_fast import backends
from ddeq_fast.radial import RadialKernel, Riesz
from ddeq_fast.validation import check_charges, check_cloud


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
        backend: a name from `ddeq_fast.backends.names()`, or "auto".

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
    u, f = evaluate(x, y, v, kernel, backends.resolve(backend, x, y, kernel), want_u, want_f)
    return tuple(out if out is None or batched else out[0] for out in (u, f))


def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: RadialKernel, backend: str, want_u=True, want_f=True):
    """`potential_and_field` of batched, already checked inputs on a resolved backend; None for unwanted parts."""
    u, f = _PotentialField.apply(x, y, v, kernel, backend, want_u, want_f)
    return (u if want_u else None), (f if want_f else None)


class _PotentialField(torch.autograd.Function):
    """(x, y, v) -> (u, f). The transpose exchanges targets and sources; see `backward`."""

    @staticmethod
    def forward(ctx, x, y, v, kernel, backend, want_u, want_f):
        ctx.kernel, ctx.backend = kernel, backend
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, v)
        return backends.get(backend).evaluate(x, y, v, kernel, want_u, want_f)

    @staticmethod
    def backward(ctx, g_u, g_f):
        x, y, v = ctx.saved_tensors
        need_x, need_y, need_v = ctx.needs_input_grad[:3]
        dx = dy = dv = None
        if g_u is not None:  # the field of v at x, and the potential and field of g_u at y
            if need_x:
                dx = g_u[..., None] * evaluate(x, y, v, ctx.kernel, ctx.backend, False, True)[1]
            if need_y or need_v:
                dv, f = evaluate(y, x, g_u, ctx.kernel, ctx.backend, need_v, need_y)
                dy = v[..., None] * f if need_y else None
        if g_f is not None:  # the Hessian of the kernel is even: the transpose is the tangent map again
            if need_x:
                dx = _plus(dx, _tangent(x, y, v, g_f, torch.zeros_like(y), ctx)[1])
            if need_y or need_v:
                ones = torch.ones_like(x[..., 0])
                du, df = _tangent(y, x, ones, torch.zeros_like(y), g_f, ctx)
                dv = _plus(dv, du) if need_v else None
                dy = _plus(dy, v[..., None] * df) if need_y else None
        return dx, dy, dv, None, None, None, None


def _plus(a, b):
    return b if a is None else a + b


def _tangent(x, y, v, s, t, ctx):
    return _Tangent.apply(x, y, v, s, t, ctx.kernel, ctx.backend)


class _Tangent(torch.autograd.Function):
    """(x, y, v, s, t) -> (du, df), the derivative of (u, f) along (s, t).

    Its own derivative (third derivatives of the kernel, rarely wanted) is taken through the dense formula.
    """

    @staticmethod
    def forward(ctx, x, y, v, s, t, kernel, backend):
        ctx.kernel = kernel
        ctx.save_for_backward(x, y, v, s, t)
        return backends.get(backend).tangent(x, y, v, s, t, kernel)

    @staticmethod
    def backward(ctx, *grads):
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[:5]) if need]
        with torch.enable_grad():
            # Aliases: one input may have been computed from another, and only the direct path counts here.
            inputs = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
            found = torch.autograd.grad(
                _tangent_formula(*inputs, ctx.kernel), [inputs[i] for i in wanted], grads, create_graph=True
            )
        result = [None] * 7
        for i, grad in zip(wanted, found, strict=True):
            result[i] = grad
        return tuple(result)


def _tangent_formula(x, y, v, s, t, kernel):
    """(du, df) from explicit differences (B, m, n, d), differentiable by autograd."""
    d = x[:, :, None] - y[:, None]
    move = s[:, :, None] - t[:, None]
    q = d.square().sum(-1)
    along = (d * move).sum(-1)
    phi = v[:, None] * kernel.phi(q)
    bend = 2 * v[:, None] * kernel.dphi(q) * along
    return (phi * along).sum(-1), (phi[..., None] * move + bend[..., None] * d).sum(2)
