"""Solvers of F#mu = mu on clouds: `solve(problem, start, solver)`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ddeq_fast.solvers.anderson import Anderson
from ddeq_fast.solvers.auto import Auto
from ddeq_fast.solvers.base import IterativeSolver, Solver, make, names, register
from ddeq_fast.solvers.flow import MMDFlow
from ddeq_fast.solvers.iterate import (
    Callback,
    ConvergenceWarning,
    Solution,
    SolveInfo,
    quiet,
    refuse_transforms,
    warn_if_unconverged,
)
from ddeq_fast.solvers.optimizers import SGD, Adam
from ddeq_fast.solvers.problem import SPACES, FixedTarget, Pushforward, check_scale

register("flow", MMDFlow)
register("anderson", Anderson)
register("auto", Auto)


def solve(
    problem: Pushforward,
    start: Tensor,
    solver: str | Solver = "auto",
    *,
    scale: Tensor | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Solution:
    """Find the equilibrium of `problem` from the cloud `start` (B, n, d).

    Args:
        problem: `Pushforward(func, ...)` or `FixedTarget(target)`.
        start: start particles; not modified.
        solver: "auto", "anderson", "flow", any registered name, or a `Solver`.
        scale: what residuals are relative to, (B,) in float64, such as `info.scale` of the solve whose solution is the
            start of this one; the residuals of `start` if None, which a good start makes hard to improve on.
        callback: called as callback(step, particles, residual) before every step and after the last, with the number of
            steps taken, the cloud of every sample (B, n, d), and residuals (B,) as last looked at, infinite before
            the first look. Both are copies. A sample that is done keeps its last cloud.
        options: of a solver given by name, such as tol and max_steps.

    Returns:
        `Solution(particles, info)`, without derivatives. Samples above the tolerance are counted in a
        `ConvergenceWarning`, and so are those of them whose residual is no more than rounding.

    Raises:
        TypeError, ValueError: naming the argument: a bad start, weights or scale, a solver that is none, an option that
            it has not.
        RuntimeError: in forward mode or under `torch.vmap`.
    """
    solver = make(solver, **options)
    if not isinstance(problem, Pushforward):
        raise TypeError(f"problem must be a Pushforward, got {type(problem).__name__}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    if isinstance(start, Tensor):
        refuse_transforms(start)
    problem = problem.checked(start)
    return run(solver, problem, start, scale=check_scale(scale, start), callback=callback)


def run(
    solver: Solver,
    problem: Pushforward,
    start: Tensor,
    *,
    scale: Tensor | None = None,
    callback: Callback | None = None,
) -> Solution:
    """`solve`, of a problem and a start that were checked."""
    given: dict[str, Any] = {"scale": scale, "callback": callback}
    solution = solver.solve(problem, start, **{name: value for name, value in given.items() if value is not None})
    warn_if_unconverged(solver, problem, solution)
    return solution


__all__ = [
    "solve",
    "run",
    "Pushforward",
    "SPACES",
    "FixedTarget",
    "Solver",
    "IterativeSolver",
    "MMDFlow",
    "Anderson",
    "Auto",
    "SGD",
    "Adam",
    "Solution",
    "SolveInfo",
    "Callback",
    "ConvergenceWarning",
    "quiet",
    "check_scale",
    "refuse_transforms",
    "make",
    "names",
    "register",
]
