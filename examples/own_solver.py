"""A solver of your own, with a state and an option, against those of the package: `python examples/own_solver.py`."""

from dataclasses import dataclass

import torch

from ddeq_fast import Pushforward, solve
from ddeq_fast.solvers import IterativeSolver, names, quiet, register


@dataclass(kw_only=True, eq=False)
class HeavyBall(IterativeSolver):
    """v <- momentum v + (F(z) - z), z <- z + v.

    Args:
        momentum: share of the last velocity, in [0, 1).
    """

    momentum: float = 0.5

    def init(self, problem, z, y):
        return torch.zeros_like(z)  # the batch axis comes first: samples that are done leave the batch

    def step(self, problem, z, y, vjp, state, step):
        velocity = self.momentum * state + (y - z)
        return z + velocity, velocity, y - z


def affine(z, context, weights):
    """z A + b, of a contraction A for each sample."""
    matrix, offset = context
    return z @ matrix + offset[:, None]


def main(samples=16, tol=1e-4):
    """Mean number of evaluations by solver."""
    if "heavy-ball" not in names():
        register("heavy-ball", HeavyBall)
    torch.manual_seed(0)
    matrix = torch.randn(samples, 4, 4, dtype=torch.float64)
    matrix = 0.9 * matrix @ matrix.mT / torch.linalg.matrix_norm(matrix, 2)[:, None, None] ** 2
    problem = Pushforward(affine, (matrix, torch.randn(samples, 4, dtype=torch.float64)))
    start, found = torch.randn(samples, 8, 4, dtype=torch.float64), {}
    solvers = {
        "plain steps": HeavyBall(momentum=0.0, max_steps=200, tol=tol),
        "heavy-ball": HeavyBall(max_steps=200, tol=tol),
        "anderson": "anderson",
        "auto": "auto",
    }
    for name, solver in solvers.items():
        options = {"tol": tol} if isinstance(solver, str) else {}
        with quiet():  # no warning of what does not converge: it is counted here
            _, info = solve(problem, start, solver, **options)
        found[name] = float(info.evaluations.double().mean())
        print(f"{name:12s} {found[name]:6.1f} evaluations, {int(info.converged.sum())} of {samples} converged")
    return found


if __name__ == "__main__":
    main()
