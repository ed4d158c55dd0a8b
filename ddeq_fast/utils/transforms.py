"""What forward mode and the transforms of `torch.func` ask of operators of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Torch has no public word for it: should it lack this one, all is taken to be transformed, which is only slower.
_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def active() -> bool:
    """Whether forward mode or a transform is at work at all: a custom operator drops tangents and cannot be mapped."""
    return _active() or getattr(forward_ad, "_current_level", 0) >= 0


def mapped(tensor: Tensor) -> bool:
    """Whether `tensor` stands for many under `torch.vmap`, so that none of its values can be read."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def unwrapped(tensor: Tensor) -> Tensor:
    """What stands behind a tensor of `torch.func`: all that are mapped, whatever its axes, without derivatives."""
    if torch.compiler.is_compiling():
        return tensor
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def wrapped(tensor: Tensor) -> bool:
    """Whether `tensor` is differentiated by, or mapped by, a transform, or carries a tangent."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return True
    return active() and forward_ad.unpack_dual(tensor).tangent is not None


def traced(tensor: Tensor) -> bool:
    """Whether operations are written down at the moment (make_fx, linearize), or `tensor` is a stand-in for it."""
    mode = torch._C._TorchDispatchModeKey
    recording = any(torch._C._get_dispatch_mode(key) is not None for key in (mode.PROXY, mode.FAKE))
    return recording or isinstance(tensor, torch._subclasses.FakeTensor)


@torch._disable_dynamo
def outside_the_graph(function: Callable, *args):
    """`function(*args)`, which `torch.compile` leaves its graph for.

    Dynamo would trace through an `autograd.Function` and lose tangents without a word.
    """
    return function(*args)


def once(gradient: Tensor, error: Exception, *depends: Tensor) -> Tensor:
    """A gradient without a graph, which depends on these tensors all the same: to differentiate it raises `error`."""
    return _Once.apply(gradient, error, *depends)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(gradient, *_):
        return gradient.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.error = inputs[1]

    @staticmethod
    def backward(ctx, *_):
        raise type(ctx.error)(*ctx.error.args)


def rules(backward: Callable, jvp: Callable, batched: Callable) -> tuple[staticmethod, staticmethod, staticmethod]:
    """`backward`, `jvp` and `vmap` of an `autograd.Function`, from rules that are made of such functions themselves.

    backward(ctx, *gradients) is as torch has it; jvp(ctx, saved tensors, *tangents) is given the saved tensors;
    `batched` is the function itself, of batched clouds.
    """

    def eager(rule: Callable) -> staticmethod:
        return staticmethod(torch._disable_dynamo(rule))

    return eager(backward), eager(_forward_rule(jvp)), eager(functools.partial(fold, batched))


def _forward_rule(rule: Callable) -> Callable:
    """Forward mode nests only so: torch switches it off for `jvp` at all levels, and what the outer ones carry is lost.

    Switched on again, the saved tensors must be without their tangents of the level at hand.
    """

    def jvp(ctx, *tangents):
        with forward_ad._set_fwd_grad_enabled(True):
            return rule(ctx, [forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors], *tangents)

    return jvp


def fold(function: Callable, info, in_dims, *args):
    """`vmap` of a function of batched clouds (B, ...), whose clouds do not mix: the mapped axis joins the batch."""
    count = info.batch_size

    def folded(arg, axis):
        if not isinstance(arg, Tensor):
            return arg
        arg = arg.expand(count, *arg.shape) if axis is None else arg.movedim(axis, 0)
        return arg.flatten(0, 1)

    out = function(*map(folded, args, in_dims))
    if isinstance(out, Tensor):
        return out.unflatten(0, (count, -1)), 0
    # An empty tensor stands for what is not wanted.
    mapped = [len(tensor) > 0 for tensor in out]
    split = [tensor.unflatten(0, (count, -1)) if some else tensor for tensor, some in zip(out, mapped, strict=True)]
    return tuple(split), tuple(0 if some else None for some in mapped)
