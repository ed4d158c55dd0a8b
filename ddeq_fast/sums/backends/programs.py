"""Programs that torch.compile makes of formulas over pairs, shared by the parts of the compiled backend.

Shapes and all numbers of the kernel are arguments: a Python float that the compiler sees may be kept from the first
call for all later ones, in this process and, from its cache on disk, in others. Needs a C++ compiler and a folder to
write to.
"""

from __future__ import annotations

import functools
import getpass
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor

from ddeq_fast.sums.radial import Elementary, RadialKernel, elementary

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# What a kernel is compiled as: class and code of each term.
Kinds = tuple[tuple[type[Elementary], str], ...]


def lowered(kernel: RadialKernel, like: Tensor) -> tuple[Kinds, Tensor]:
    """A kernel of registered terms as programs take it: its kinds, and weights and numbers (terms, 2)."""
    terms = elementary(kernel)
    kinds = tuple((type(term), term.code) for _, term in terms)
    return kinds, like.new_tensor([(weight, term.number) for weight, term in terms])


def mixed(kinds: Kinds, numbers: Tensor, q: Tensor, order: str) -> Any:
    """sum_m weight_m k_m(q), or of phi or the curvature."""
    total: Any = 0
    for i, (kind, code) in enumerate(kinds):
        total = total + numbers[i, 0] * kind.profile(order, q, numbers[i, 1], code)
    return total


@dataclass(frozen=True)
class Program:
    """What a program is compiled for: nothing of it is a float.

    Also its dtype and which of batch, targets and sources are one, sizes that are compiled in: dynamo would compile it
    anew for each of them, which it refuses to do too often.
    """

    formula: Callable
    d: int
    kinds: Kinds
    wanted: tuple[bool, bool]
    dtype: torch.dtype
    ones: tuple[bool, bool, bool]


_failed: set[Program] = set()  # could not be compiled: not tried again


def run(program: Program, *arguments) -> list[Tensor] | None:
    """formula(kinds, wanted, *arguments), compiled; None, after one warning, if it cannot be compiled here."""
    if program in _failed:
        return None
    # Sizes that are equal in the first call need not be in others. `patch` takes as long as half of a small call.
    settings: Any = torch.fx.experimental._config
    shared, settings.use_duck_shape = settings.use_duck_shape, False
    try:
        return _compiled(program)(*arguments)
    except Exception as error:
        if not _without_compiler(error):
            raise
        reason = error
    finally:
        settings.use_duck_shape = shared
    _failed.add(program)
    first = (str(reason).splitlines() or [type(reason).__name__])[0]
    _warn_once(f"{first}; its code goes to {_place()} (environment variable {VARIABLE})")
    return None


def _without_compiler(error: Exception) -> bool:
    """Whether this says that nothing can be compiled here, or written."""
    if isinstance(error, OSError):  # also of what is imported next, which makes a folder
        return True
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def code_folder() -> str:
    """Where torch keeps compiled code; it may not exist. Raises OSError if there is no folder for temporary files."""
    if folder := os.environ.get(VARIABLE):
        return folder
    try:
        user = getpass.getuser()
    except KeyError as error:
        raise OSError(f"the user has no name: {error}") from error
    return os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")


def _place() -> str:
    try:
        return code_folder()
    except OSError as error:
        return f"a folder that cannot be found ({error})"


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"the compiled backend falls back to dense: {reason}", RuntimeWarning, stacklevel=5)


@functools.lru_cache(maxsize=256)
def _compiled(program: Program) -> Callable[..., list[Tensor]]:
    """The formula compiled."""

    def run(*arguments):
        return program.formula(program.kinds, program.wanted, *arguments)

    # Dynamo counts recompilations by code object: each program gets one of its own.
    run.__code__ = run.__code__.replace(co_name=f"{program.formula.__name__}_{program.d}")
    return torch.compile(run, dynamic=True, fullgraph=True)
