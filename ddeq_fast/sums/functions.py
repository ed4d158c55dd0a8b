"""The sums as PyTorch operators `torch.ops.ddeq_fast.{evaluate,tangent,energy}` and their derivatives.

Private to `operators`, the door to them. As operators they pass through `torch.compile`, export and autocast. A radial
kernel travels as text (`encoding`), since operators take no objects; the backend is chosen when the operator runs, not
when it is traced.

Torch's custom operators know neither forward mode nor the transforms of `torch.func`. The functions `evaluate`,
`tangent` and `energy` know both: in their presence each is an `autograd.Function` around its operator, and what
`torch.compile` makes leaves it to the interpreter. A kernel of a user's own class stays out of compiled graphs too.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from ddeq_fast.sums import backends, third
from ddeq_fast.sums.backends import programs
from ddeq_fast.sums.encoding import alive, decode
from ddeq_fast.sums.radial import RadialKernel
from ddeq_fast.sums.ranges import in_range
from ddeq_fast.utils import transforms


@torch.library.custom_op("ddeq_fast::evaluate", mutates_args=())
def evaluate_op(
    x: Tensor, y: Tensor, v: Tensor, kernel: str, backend: str, potential: bool, field: bool
) -> tuple[Tensor, Tensor]:
    """`Backend.evaluate` on batched clouds; an empty tensor stands for a sum that is not wanted."""
    decoded, chosen = _chosen(kernel, backend, x, y)

    def sums(x, y, v):
        return chosen.evaluate(x, y, v, decoded, potential, field)

    u, f = in_range(chosen, sums, decoded, x, y, v)
    return u, f


def _chosen(kernel: str, backend: str, x: Tensor, y: Tensor) -> tuple[RadialKernel, backends.Backend]:
    """The kernel, and the backend for these clouds."""
    decoded = decode(kernel)
    return decoded, backends.get(backends.resolve(backend, x, y, decoded))


@evaluate_op.register_fake
def _(x, y, v, kernel, backend, potential, field):
    return x.new_empty(x.shape[:2] if potential else (0,)), x.new_empty(x.shape if field else (0,))


@torch.library.custom_op("ddeq_fast::tangent", mutates_args=())
def tangent_op(
    x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: str, backend: str
) -> tuple[Tensor, Tensor]:
    """`Backend.tangent` on batched clouds: derivatives of (u, f) as x moves along s and y along t."""
    decoded, chosen = _chosen(kernel, backend, x, y)

    def sums(x, y, v, s, t):
        return chosen.tangent(x, y, v, s, t, decoded)

    du, df = in_range(chosen, sums, decoded, x, y, v, s, t)
    return du, df


@tangent_op.register_fake
def _(x, y, v, s, t, kernel, backend):
    return x.new_empty(x.shape[:2]), x.new_empty(x.shape)


def energy_sums(
    chosen: backends.Backend, z: Tensor, w: Tensor, kernel: RadialKernel, field: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Energy, potential and field by one backend: by its own method where it has one."""
    if hasattr(chosen, "energy"):
        return chosen.energy(z, w, kernel, field)
    u, f = chosen.evaluate(z, z, w, kernel, True, field)
    assert u is not None  # it was asked for
    return (w * u).sum(-1), u, f


@torch.library.custom_op("ddeq_fast::energy", mutates_args=())
def energy_op(z: Tensor, w: Tensor, kernel: str, backend: str, field: bool) -> tuple[Tensor, Tensor, Tensor]:
    """sum_ij w_i w_j k(z_i, z_j), (B,), and the potential and field at z that its gradient is made of."""
    decoded, chosen = _chosen(kernel, backend, z, z)

    def sums(z, _, w):
        return energy_sums(chosen, z, w, decoded, field)

    value, u, f = in_range(chosen, sums, decoded, z, z, w)
    return value, u, f


@energy_op.register_fake
def _(z, w, kernel, backend, field):
    return w.new_empty(w.shape[:1]), w.new_empty(w.shape), z.new_empty(z.shape if field else (0,))


def evaluate(
    x: Tensor, y: Tensor, v: Tensor, kernel: str, backend: str, potential: bool, field: bool
) -> tuple[Tensor, Tensor]:
    """`evaluate_op`, differentiable in forward mode too, and under the transforms of `torch.func`.

    Where the clouds lie in shards, in all processes with a graph or in none, and neither of these.
    """
    _ready()
    if transforms.active():
        return _transformed(_Evaluate, (x, y, v), kernel, backend, potential, field)
    x, y, v = _tracked(backend, x, y, v)
    return _operator(evaluate_op, kernel)(x, y, v, kernel, backend, potential, field)


def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: str, backend: str) -> tuple[Tensor, Tensor]:
    """`tangent_op`, as `evaluate`."""
    _ready()
    if transforms.active():
        return _transformed(_Tangent, (x, y, v, s, t), kernel, backend)
    x, y, v, s, t = _tracked(backend, x, y, v, s, t)
    return _operator(tangent_op, kernel)(x, y, v, s, t, kernel, backend)


def energy(z: Tensor, w: Tensor, kernel: str, backend: str) -> Tensor:
    """The value of `energy_op`, (B,), as `evaluate`. One pass gives it and, where z needs it, the gradient."""
    _ready()
    if transforms.active():
        return _transformed(_Energy, (z, w), kernel, backend)
    return _operator(energy_op, kernel)(z, w, kernel, backend, z.requires_grad and torch.is_grad_enabled())[0]


def _ready() -> None:
    if not torch.compiler.is_compiling():
        _prepare_torch()


@functools.cache
def _prepare_torch() -> None:
    """Custom operators import torch's compiler, which must make a folder for its code when that is imported.

    Where it cannot, sums do without it: they need no compiled code, and the folder of this package is there already.
    """
    try:
        os.makedirs(programs.code_folder(), exist_ok=True)
    except OSError:
        before = os.environ.get(programs.VARIABLE)
        os.environ[programs.VARIABLE] = str(Path(__file__).parent)
        try:
            import torch._dynamo  # noqa: F401
        finally:
            if before is None:
                del os.environ[programs.VARIABLE]
            else:
                os.environ[programs.VARIABLE] = before


def _operator(op, kernel):
    """The operator; kernels that are only numbered cannot be kept by a graph."""
    return op if type(kernel) is str else functools.partial(transforms.outside_the_graph, op)


def _tracked(backend, *tensors):
    ring = backends.sharded(backend)
    return tensors if ring is None else ring.tracked(*tensors)


def _transformed(function, tensors, kernel, backend, *wanted):
    if backends.sharded(backend):
        raise ValueError(
            f"backend {backend!r} has neither forward mode nor the transforms of torch.func: each process would "
            "take its own directions, and the sums mix them"
        )
    if torch.is_autocast_enabled(tensors[0].device.type):  # as it hands them to the operators
        tensors = [_widened(tensor) for tensor in tensors]
    return transforms.outside_the_graph(function.apply, *tensors, kernel, backend, *wanted)


def _evaluate_setup(ctx, inputs, output):
    x, y, v, kernel, ctx.backend, ctx.potential, ctx.field = inputs
    ctx.kernel = alive(kernel)
    ctx.save_for_backward(x, y, v)
    ctx.save_for_forward(x, y, v)
    ctx.set_materialize_grads(False)


def _evaluate_backward(ctx, g_u, g_f):
    """The transpose exchanges targets and sources."""
    x, y, v = ctx.saved_tensors
    need_x, need_y, need_v = ctx.needs_input_grad[:3]
    rule = ctx.kernel, ctx.backend
    ring = backends.sharded(ctx.backend)
    if ring is not None:  # the same sums in every process, whatever each of them needs
        flags = need_x, need_y, need_v, g_u is not None, g_f is not None
        need_x, need_y, need_v, some_u, some_f = ring.anywhere(*flags)
        g_u = torch.zeros_like(x[..., 0]) if some_u and g_u is None else g_u
        g_f = torch.zeros_like(x) if some_f and g_f is None else g_f
    dx = dy = dv = None
    if g_u is not None and ctx.potential:  # the field of v at x, and the potential and field of g_u at y
        if need_x:
            dx = g_u[..., None] * evaluate(x, y, v, *rule, False, True)[1]
        if need_y or need_v:
            potential, field = evaluate(y, x, g_u, *rule, need_v, need_y)
            dv = potential if need_v else None
            dy = v[..., None] * field if need_y else None
    if g_f is not None and ctx.field:  # the Hessian of the kernel is even: the transpose is the tangent map again
        if need_x:
            dx = _plus(dx, tangent(x, y, v, g_f, torch.zeros_like(y), *rule)[1])
        if need_y or need_v:
            ones = torch.ones_like(x[..., 0])
            du, df = tangent(y, x, ones, torch.zeros_like(y), g_f, *rule)
            dv = _plus(dv, du) if need_v else None
            dy = _plus(dy, v[..., None] * df) if need_y else None
    return dx, dy, dv, None, None, None, None


def _plus(a, b):
    return b if a is None else a + b


def _evaluate_jvp(ctx, saved, s, t, c, *_):
    """Derivatives as x moves along s, y along t and v along c, any of them None."""
    x, y, v = saved
    rule, wanted = (ctx.kernel, ctx.backend), (ctx.potential, ctx.field)
    total: tuple[Tensor | None, Tensor | None] = None, None
    if s is not None and t is None and not ctx.field:
        total = (evaluate(x, y, v, *rule, False, True)[1] * s).sum(-1), None
    elif s is not None or t is not None:
        total = tangent(x, y, v, _or_zeros(s, x), _or_zeros(t, y), *rule)
    if c is not None:
        u, f = evaluate(x, y, c, *rule, *wanted)
        total = (_plus(total[0], u) if ctx.potential else None), (_plus(total[1], f) if ctx.field else None)
    return tuple(part if want else x.new_zeros(0) for part, want in zip(total, wanted, strict=True))


def _or_zeros(tangent, like):
    return torch.zeros_like(like) if tangent is None else tangent


def _tangent_setup(ctx, inputs, output):
    *tensors, kernel, ctx.backend = inputs
    ctx.kernel = alive(kernel)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _tangent_backward(ctx, *grads):
    wanted = [i for i, need in enumerate(ctx.needs_input_grad[:5]) if need]
    result: list[Tensor | None] = [None] * 7
    found = third.transposed(_third(ctx), ctx.saved_tensors, wanted, grads)
    for i, grad in zip(wanted, found, strict=True):
        result[i] = grad
    return tuple(result)


def _tangent_jvp(ctx, saved, *tangents):
    moved = [i for i, tangent in enumerate(tangents[:5]) if tangent is not None]
    return third.forward(_third(ctx), saved, moved, [tangents[i] for i in moved])


def _third(ctx):
    """The kernel whose third derivatives are asked for."""
    if backends.sharded(ctx.backend):
        raise ValueError(f"backend {ctx.backend!r} has no third derivatives: they need all points at once")
    return decode(ctx.kernel)


def _energy_setup(ctx, inputs, output):
    z, w, kernel, ctx.backend, _ = inputs
    ctx.kernel = alive(kernel)
    _, u, f = output
    ctx.save_for_backward(z, w, u, f)
    ctx.mark_non_differentiable(u, f)


def _energy_backward(ctx, g, *_):
    """d/dz_i = 2 w_i f(z_i), d/dw_i = 2 u(z_i): the forward pass holds both."""
    z, w, u, f = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative may follow: recompute with a graph
        return *_energy_gradient(ctx, g, z, w), None
    need_z, need_w = ctx.needs_input_grad[:2]
    return *_energy_slopes(g, w, u if need_w else None, f if need_z else None), None, None, None


def _energy_gradient(ctx, g, z, w):
    need_z, need_w = ctx.needs_input_grad[:2]
    u, f = evaluate(z, z, w, ctx.kernel, ctx.backend, need_w, need_z)
    return *_energy_slopes(g, w, u if need_w else None, f if need_z else None), None, None


def _energy_slopes(g, w, u, f):
    dz = None if f is None else 2 * (g[:, None] * w)[..., None] * f
    return dz, (None if u is None else 2 * g[:, None] * u)


evaluate_op.register_autograd(_evaluate_backward, setup_context=_evaluate_setup)
tangent_op.register_autograd(_tangent_backward, setup_context=_tangent_setup)
energy_op.register_autograd(_energy_backward, setup_context=_energy_setup)


def _keep_precision(op, name: str, device: str) -> None:
    """Under autocast: a discrepancy is a difference of nearly equal sums, which half precision would cancel away."""

    def in_float32(*args):
        with torch.autocast(device, enabled=False):
            return op(*(_widened(arg) if isinstance(arg, Tensor) else arg for arg in args))

    # `op.register_autocast` came with torch 2.7.
    torch.library.impl(f"ddeq_fast::{name}", f"Autocast{device.upper()}", in_float32)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


for _op, _name in ((evaluate_op, "evaluate"), (tangent_op, "tangent"), (energy_op, "energy")):
    for _device in ("cpu", "cuda"):
        _keep_precision(_op, _name, _device)


def _energy_jvp(ctx, saved, s, c, *_):
    z, w = saved
    u, f = evaluate(z, z, w, ctx.kernel, ctx.backend, c is not None, s is not None)
    total = None if s is None else 2 * (w * (f * s).sum(-1)).sum(-1)
    return total if c is None else _plus(total, 2 * (u * c).sum(-1))


class _Evaluate(torch.autograd.Function):
    forward = staticmethod(evaluate_op)
    setup_context = staticmethod(_evaluate_setup)
    backward, jvp, vmap = transforms.rules(_evaluate_backward, _evaluate_jvp, evaluate)


class _Tangent(torch.autograd.Function):
    forward = staticmethod(tangent_op)
    setup_context = staticmethod(_tangent_setup)
    backward, jvp, vmap = transforms.rules(_tangent_backward, _tangent_jvp, tangent)


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(z, w, kernel, backend):
        return energy_op(z, w, kernel, backend, False)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        z, w, kernel, ctx.backend = inputs
        ctx.kernel = alive(kernel)
        ctx.save_for_backward(z, w)
        ctx.save_for_forward(z, w)
        ctx.set_materialize_grads(False)

    @staticmethod
    def _backward(ctx, g):
        return (None,) * 4 if g is None else _energy_gradient(ctx, g, *ctx.saved_tensors)

    backward, jvp, vmap = transforms.rules(_backward, _energy_jvp, energy)
