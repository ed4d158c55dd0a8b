"""Backends carry the sums out, each in its own module; here they are registered. Another is added by `register`."""

from __future__ import annotations

import functools

from torch import Tensor

from ddeq_fast.sums.backends import compiled, costs, dense, keops, ring, sliced, tree, triton
from ddeq_fast.sums.backends.costs import expected_calls
from ddeq_fast.sums.backends.memory import memory_budget, set_memory_budget
from ddeq_fast.sums.backends.registry import (
    Backend,
    base,
    check,
    check_whole,
    exact,
    get,
    names,
    register,
    resolve,
    sharded,
    to_tolerance,
    tolerance,
    unsupported,
)
from ddeq_fast.sums.radial import RadialKernel

__all__ = [
    "Backend",
    "base",
    "check",
    "check_whole",
    "exact",
    "expected_calls",
    "get",
    "memory_budget",
    "names",
    "register",
    "resolve",
    "set_memory_budget",
    "sharded",
    "to_tolerance",
    "tolerance",
    "unsupported",
]


def _only_when_named(x: Tensor, y: Tensor, kernel: RadialKernel) -> bool:
    return False


register("dense", dense)
# On the CPU the measured table decides.
register("compiled", compiled, prefer=True, offer=functools.partial(costs.worthwhile, "compiled"))
register("keops", keops, offer=_only_when_named)  # slower than the others wherever it was measured
register("ring", ring.Ring(), offer=_only_when_named)  # a sum over processes, which only they can mean
register("sliced", sliced.Sliced(), offer=_only_when_named)  # an estimate
register("tree", tree.Tree(), offer=_only_when_named)  # an estimate, to a tolerance
register("triton-tf32", triton.Triton("tf32"), offer=_only_when_named)  # less precise
register("triton-bf16", triton.Triton("bf16"), offer=_only_when_named)
# On a GPU, not measured: the kernels move no matrix through memory, which bounds all else there. Off it they are
# interpreted.
register("triton", triton.Triton(), prefer=True, offer=lambda x, y, kernel: x.is_cuda)
