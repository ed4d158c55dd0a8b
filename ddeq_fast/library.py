"""The sums as PyTorch operators `torch.ops.ddeq_fast.{evaluate,tangent,energy}`, differentiable on every backend.

As operators they pass through `torch.compile`, export and autocast. A radial kernel travels as text (`encode`),
since operators take no objects; the backend is chosen when the operator runs, not when it is traced.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ddeq_fast import backends
from ddeq_fast.radial import Gaussian, InverseMultiquadric, Laplacian, Mixture, RadialKernel, Riesz
from ddeq_fast.ranges import AnySize

_NAMES = {Riesz: "riesz", Gaussian: "gaussian", Laplacian: "laplacian", InverseMultiquadric: "inverse_multiquadric"}
_TYPES = {name: cls for cls, name in _NAMES.items()}
_OWN: list[RadialKernel] = []  # kernels of the user's own classes, by number


def encode(kernel: RadialKernel) -> str:
    """The kernel as text: "weight name shape" for each term, joined by ";"."""
    return ";".join([_encode_term(weight, term) for weight, term in kernel.terms()])


def _encode_term(weight, term):
    if type(term) in _NAMES:
        return f"{weight!r} {_NAMES[type(term)]} {(term.r if type(term) is Riesz else term.sigma)!r}"
    if term not in _OWN:
        _OWN.append(term)
    return f"{weight!r} own {_OWN.index(term)}"


@functools.lru_cache(maxsize=1024)
def decode(text: str) -> RadialKernel:
    """The inverse of `encode`."""
    terms = []
    for term in text.split(";"):
        weight, name, number = term.split()
        terms.append((float(weight), _OWN[int(number)] if name == "own" else _TYPES[name](float(number))))
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else Mixture(tuple(terms))


@torch.library.custom_op("ddeq_fast::evaluate", mutates_args=())
def evaluate_op(
    x: Tensor, y: Tensor, v: Tensor, kernel: str, backend: str, potential: bool, field: bool
) -> tuple[Tensor, Tensor]:
    """`Backend.evaluate` on batched clouds; an empty tensor stands for a sum that is not wanted."""
    decoded, chosen = _chosen(kernel, backend, x, y)
    u, f = chosen.evaluate(x, y, v, decoded, potential, field)
    return (x.new_empty(0) if u is None else u), (x.new_empty(0) if f is None else f)


def _chosen(kernel: str, backend: str, x: Tensor, y: Tensor) -> tuple[RadialKernel, AnySize]:
    """The kernel, and the backend for these clouds."""
    decoded = decode(kernel)
    return decoded, AnySize(backends.get(backends.resolve(backend, x, y, decoded)))


@evaluate_op.register_fake
def _(x, y, v, kernel, backend, potential, field):
    return x.new_empty(x.shape[:2] if potential else (0,)), x.new_empty(x.shape if field else (0,))


@torch.library.custom_op("ddeq_fast::tangent", mutates_args=())
def tangent_op(
    x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: str, backend: str
) -> tuple[Tensor, Tensor]:
    """`Backend.tangent` on batched clouds: derivatives of (u, f) as x moves along s and y along t."""
    decoded, chosen = _chosen(kernel, backend, x, y)
    return chosen.tangent(x, y, v, s, t, decoded)


@tangent_op.register_fake
def _(x, y, v, s, t, kernel, backend):
    return x.new_empty(x.shape[:2]), x.new_empty(x.shape)


@torch.library.custom_op("ddeq_fast::energy", mutates_args=())
def energy_op(z: Tensor, w: Tensor, kernel: str, backend: str, field: bool) -> tuple[Tensor, Tensor, Tensor]:
    """sum_ij w_i w_j k(z_i, z_j), (B,), and the potential and field at z that its gradient is made of."""
    decoded, chosen = _chosen(kernel, backend, z, z)
    value, u, f = chosen.energy(z, w, decoded, field)
    return value, u, (z.new_empty(0) if f is None else f)


@energy_op.register_fake
def _(z, w, kernel, backend, field):
    return w.new_empty(w.shape[:1]), w.new_empty(w.shape), z.new_empty(z.shape if field else (0,))


def evaluate(x: Tensor, y: Tensor, v: Tensor, kernel: str, backend: str, potential: bool, field: bool):
    """`evaluate_op`, in all processes with a graph or in none where the clouds lie in shards."""
    ring = backends.sharded(backend)
    if ring is not None:
        x, y, v = ring.tracked(x, y, v)
    return evaluate_op(x, y, v, kernel, backend, potential, field)


def tangent(x: Tensor, y: Tensor, v: Tensor, s: Tensor, t: Tensor, kernel: str, backend: str):
    """`tangent_op`, as `evaluate`."""
    ring = backends.sharded(backend)
    if ring is not None:
        x, y, v, s, t = ring.tracked(x, y, v, s, t)
    return tangent_op(x, y, v, s, t, kernel, backend)


def _evaluate_setup(ctx, inputs, output):
    x, y, v, ctx.kernel, ctx.backend, ctx.potential, ctx.field = inputs
    ctx.save_for_backward(x, y, v)
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


def _tangent_setup(ctx, inputs, output):
    *tensors, ctx.kernel, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _tangent_backward(ctx, *grads):
    """Third derivatives of the kernel, rarely wanted: taken through the dense formula."""
    if ctx.backend != "auto" and getattr(backends.get(ctx.backend), "sharded", False):
        raise ValueError(f"backend {ctx.backend!r} has no third derivatives: they need all points at once")
    wanted = [i for i, need in enumerate(ctx.needs_input_grad[:5]) if need]
    with torch.enable_grad():
        # Aliases: one input may have been computed from another, and only the direct path counts here.
        inputs = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        found = torch.autograd.grad(
            _tangent_formula(*inputs, decode(ctx.kernel)), [inputs[i] for i in wanted], grads, create_graph=True
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


def _energy_setup(ctx, inputs, output):
    z, w, ctx.kernel, ctx.backend, _ = inputs
    _, u, f = output
    ctx.save_for_backward(z, w, u, f)
    ctx.mark_non_differentiable(u, f)


def _energy_backward(ctx, g, *_):
    """d/dz_i = 2 w_i f(z_i), d/dw_i = 2 u(z_i): the forward pass holds both."""
    z, w, u, f = ctx.saved_tensors
    need_z, need_w = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # a second derivative may follow: recompute with a graph
        u, f = evaluate_op(z, z, w, ctx.kernel, ctx.backend, need_w, need_z)
    dz = 2 * (g[:, None] * w)[..., None] * f if need_z else None
    dw = 2 * g[:, None] * u if need_w else None
    return dz, dw, None, None, None


evaluate_op.register_autograd(_evaluate_backward, setup_context=_evaluate_setup)
tangent_op.register_autograd(_tangent_backward, setup_context=_tangent_setup)
energy_op.register_autograd(_energy_backward, setup_context=_energy_setup)
# A discrepancy is a difference of nearly equal sums, which half precision would cancel away.
for _op in (evaluate_op, tangent_op, energy_op):
    for _device in ("cpu", "cuda"):
        _op.register_autocast(_device, torch.float32)
