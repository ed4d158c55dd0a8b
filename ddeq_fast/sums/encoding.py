"""Radial kernels as text for operators, which take no objects: the text of `radial`, and numbers for users' kernels."""

from __future__ import annotations

import functools
import itertools
import os
import weakref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ddeq_fast.sums.radial import OWN, RadialKernel, registered, written
from ddeq_fast.sums.text import joined, parse, split
from ddeq_fast.utils import transforms

# Kernels of users' own classes, by number, and number and state of each, while anything else holds them. A text that
# was saved by another process names none of these: numbers start anywhere.
_OWN: weakref.WeakValueDictionary[int, RadialKernel] = weakref.WeakValueDictionary()
_NUMBERED = WeakIdKeyDictionary()
_numbers = itertools.count(int.from_bytes(os.urandom(6), "little"))


class _Numbered(str):
    """A text that holds the kernels which it gives by number alone."""

    kernels: tuple[RadialKernel, ...]


def encode(kernel: RadialKernel) -> str:
    """The kernel as the text that `text.parse` reads, with a number for every term that is not registered.

    The text holds the kernels that it numbers. Raises ValueError if gradients are asked of one.
    """
    own = [term for _, term in kernel.terms() if not registered(term)]
    text = written(kernel, lambda term: f"{OWN}:{_number(term)}")
    return _holding(text, own) if own else text


def alive(text: str) -> str:
    """The text, holding its kernels: for a graph, which outlives the call that made it."""
    return _holding(text, [term for _, term in decode(text).terms()]) if _is_numbered(text) else text


def decode(text: str) -> RadialKernel:
    """The inverse of `encode`; raises ValueError if a kernel of a user's own class is gone, or was changed."""
    return _decode(text) if _is_numbered(text) else _parse(text)


def _is_numbered(text):
    return type(text) is _Numbered or f"{OWN}:" in text


def _holding(text, kernels):
    text = _Numbered(text)
    text.kernels = tuple(kernels)
    return text


def _decode(text):
    return joined(
        [
            (weight, _numbered(int(number)) if name == OWN else parse(f"{name}:{number}"))
            for weight, name, number in split(text)
        ]
    )


_parse = functools.lru_cache(maxsize=1024)(parse)


@torch._disable_dynamo
def _number(kernel):
    """A number for as long as the kernel lives and is not changed."""
    _check_parameters(kernel)
    if kernel not in _NUMBERED or _changed(kernel):
        number = next(_numbers)
        _NUMBERED[kernel] = number, _state(kernel)
        _OWN[number] = kernel
    return _NUMBERED[kernel][0]


def _numbered(number):
    kernel = _OWN.get(number)
    if kernel is None:
        raise ValueError(f"kernel number {number}, of a class of your own, is no longer held by anything")
    if _NUMBERED[kernel][0] != number or _changed(kernel):
        name = type(kernel).__name__
        raise ValueError(f"kernel {name} was changed before its derivatives were taken: kernels are immutable")
    return kernel


def _changed(kernel):
    """Whether an attribute is not what it was; one that was added since is a cache."""
    state = _state(kernel)
    return any(state.get(name) != value for name, value in _NUMBERED[kernel][1].items())


def _state(kernel):
    """Its attributes that are plain values, and what tells that a tensor among them was written to."""
    state = {name: value for name, value in vars(kernel).items() if isinstance(value, (bool, int, float, str, Tensor))}
    return {name: _version(value) if isinstance(value, Tensor) else value for name, value in state.items()}


def _version(tensor):
    return id(tensor), None if tensor.is_inference() else tensor._version


def _check_parameters(kernel):
    """The sums are functions of clouds and charges: a kernel's own parameters would lose their gradients silently."""
    values = dict(vars(kernel))
    if isinstance(kernel, torch.nn.Module):
        values |= dict(kernel.named_parameters())
    for name, value in values.items():
        if isinstance(value, Tensor) and (
            (value.requires_grad and torch.is_grad_enabled()) or transforms.wrapped(value)
        ):
            raise ValueError(
                f"kernel {type(kernel).__name__} has a parameter {name} that is differentiated or mapped: the sums are "
                "functions of clouds and charges alone, a kernel's parameters must be constant"
            )
