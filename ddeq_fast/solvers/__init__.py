"""Solvers of F#mu = mu on clouds: `solve(problem, start, solver)`."""

from __future__ import annotations

from torch import Tensor

from ddeq_fast.solvers.anderson import Anderson
from ddeq_fast.solvers.auto import Auto
from ddeq_fast.solvers.base import IterativeSolver, Solver, make, names, register
from ddeq_fast.solvers.flow import MMDFlow
from ddeq_fast.solvers.iterate import ConvergenceWarning, Solution, SolveInfo, warn_if_unconverged
from ddeq_fast.solvers.optimizers import SGD, Adam
from ddeq_fast.solvers.problem import FixedTarget, Pushforward

register("flow", MMDFlow)
register("anderson", Anderson)
register("auto", Auto)


def solve(problem: Pushforward, start: Tensor, solver: str | Solver = "auto", **options) -> Solution:
    """Find the equilibrium of `problem` from the cloud `start` (B, n, d).

    Args:
        problem: `Pushforward(func, ...)` or `FixedTarget(target)`.
        start: start particles; not modified.
        solver: "auto", "anderson", "flow", any registered name, or a `Solver`.
        options: passed to the solver named.

    Returns:
        `Solution(particles, info)`. Samples above the tolerance are counted in a `ConvergenceWarning`.

    Raises:
        TypeError, ValueError: bad start cloud, weights, solver or option.
    """
    solver = make(solver, **options)
    problem.check(start)
    solution = solver.solve(problem, start)
    warn_if_unconverged(type(solver).__name__, solution.info, solver.tol)
    return solution


__all__ = [
    "solve",
    "Pushforward",
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
    "ConvergenceWarning",
    "make",
    "names",
    "register",
]
