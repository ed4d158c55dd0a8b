"""Solvers by name, solvers of the user's own, bad options."""

import pytest
import torch

from ddeq_fast.solvers import Anderson, Auto, IterativeSolver, MMDFlow, Pushforward, make, names, register, solve
from problems import affine, fails


def test_solvers_are_looked_up_by_name(context, start):
    problem = Pushforward(affine, context)
    assert torch.equal(solve(problem, start).particles, solve(problem, start, Auto()).particles)
    assert type(make("flow", lr=0.5)) is MMDFlow and make("flow", lr=0.5).lr == 0.5
    assert type(make("anderson")) is Anderson and type(make("auto")) is Auto
    solver = Anderson()
    assert make(solver) is solver
    assert {"flow", "anderson", "auto"} <= set(names())


def test_users_register_solvers_of_their_own(context, start, monkeypatch):
    class Picard(IterativeSolver):
        """z <- F(z)."""

        def __init__(self):
            super().__init__(
                kernel=None,
                max_steps=100,
                tol=1e-4,
                relative=True,
                stop_on="mmd",
                stop_together=False,
                check_every=1,
                backend="auto",
            )

        def init(self, problem, z, y):
            return None

        def step(self, problem, z, y, vjp, state, step):
            return y, state, y - z

    monkeypatch.setattr("ddeq_fast.solvers.base._SOLVERS", {})
    register("picard", Picard)
    assert solve(Pushforward(affine, context), start, "picard").info.converged.all()
    with fails(ValueError, "solver name 'picard' is taken"):
        register("picard", Picard)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("newton",), {}, ValueError, "solver must be one of anderson, auto, flow; got 'newton'"),
        ((3,), {}, TypeError, "solver must be a name or a Solver, got int"),
        ((Anderson(),), {"tol": 1.0}, TypeError, "options tol need a solver given by name, got Anderson"),
        (("flow",), {"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        (("flow",), {"max_steps": 1.5}, TypeError, "max_steps must be an integer, got float"),
        (("anderson",), {"tol": -1.0}, ValueError, "tol must lie in [0, inf), got -1.0"),
        (("flow",), {"tol": None}, TypeError, "tol must be a number, got NoneType"),
        (("flow",), {"stop_on": "loss"}, ValueError, "stop_on must be one of gradient, mmd; got 'loss'"),
        (("anderson",), {"check_every": 0}, ValueError, "check_every must be at least 1, got 0"),
        (("flow",), {"kernel": "riesz"}, TypeError, "kernel must be a RadialKernel such as Riesz(1.0), got str"),
    ],
)
def test_bad_options(context, start, arguments, options, error, message):
    with fails(error, message):
        solve(Pushforward(affine, context), start, *arguments, **options)
