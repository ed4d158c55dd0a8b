"""The interface of gradients at a fixed point, and their registry.

A backward takes the detached solution and returns the same particles (or a damped image of them) with an autograd graph
through a few evaluations of F. One of one's own is a class with `attach`:

    class OneStep(Backward):
        \"\"\"The gradient of F alone, as if what it is evaluated at did not depend on anything.\"\"\"

        def attach(self, problem, z):
            return problem.constrained_image(z), BackwardInfo(evaluations=1)

    register("one-step", OneStep)

From then on `DDEQ(transport, backward="one-step")` takes it, and so do its like with `OneStep()`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ddeq_fast.solvers.problem import Pushforward
from ddeq_fast.utils.options import Registry, ShortRepr


@dataclass
class BackwardInfo:
    """Filled in when the backward pass runs: evaluations of J^T, and the relative residual of each sample.

    For g = g0 + J^T g the residual is |g0 + J^T g - g| / |g0|, (B,), float64. evaluated: the solution and F at it,
    (B, n, d), with its graph, if it was evaluated there: `jacobian_norm` takes both.
    """

    evaluations: int = 0
    residual: Tensor | None = field(default=None, repr=False)
    evaluated: tuple[Tensor, Tensor] | None = field(default=None, repr=False)


class Backward(ShortRepr):
    """Anything with `attach(problem, z) -> (tracked z, BackwardInfo)`."""

    def attach(self, problem: Pushforward, z: Tensor) -> tuple[Tensor, BackwardInfo]:
        """Give the detached solution z (B, n, d) a graph; called with gradients enabled, or to evaluate its image.

        `problem.constrained_image(z)` is F(z) with frozen particles where they are.
        """
        raise NotImplementedError


BACKWARDS: Registry[Backward] = Registry("backward", "attach")


def register(name: str, factory: Callable[..., Backward]) -> None:
    """Make a backward known by name: its class, or a function that makes one of options.

    Raises:
        TypeError: the name is no string, or the factory cannot be called. ValueError: the name is taken.
    """
    BACKWARDS.register(name, factory)


def names() -> list[str]:
    """Registered backwards."""
    return list(BACKWARDS.factories)


def make(backward: str | Backward, **options: Any) -> Backward:
    """The backward of that name with these options; a Backward is returned as it is.

    Raises:
        ValueError: an unknown name, or an option out of range.
        TypeError: no backward, an option that it has not, or options for a backward that is ready.
    """
    return BACKWARDS.make(backward, options)
