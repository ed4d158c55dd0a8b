"""Solvers by name, solvers of the user's own, what they print, bad options."""

import dataclasses
import textwrap

import pytest
import torch

from ddeq_fast import Gaussian, Riesz
from ddeq_fast.models import DDEQ, Classifier
from ddeq_fast.solvers import (
    SGD,
    Anderson,
    Auto,
    ConvergenceWarning,
    IterativeSolver,
    MMDFlow,
    Pushforward,
    base,
    make,
    names,
    register,
    solve,
)
from problems import affine, affine_context, affine_solution, close, fails, small_transport


@pytest.fixture
def own_names(monkeypatch):
    """Names registered in a test are forgotten after it."""
    monkeypatch.setattr(base.SOLVERS, "factories", dict(base.SOLVERS.factories))


@pytest.fixture
def picard(own_names):
    """The class in the documentation, registered as "picard"."""
    code = textwrap.dedent(base.__doc__[base.__doc__.index("    class Picard") : base.__doc__.index("From then on")])
    assert len(code.split("\n\n    def")[0].splitlines()) + 2 < 10
    space = {"IterativeSolver": IterativeSolver, "register": register}
    exec(code, space)
    return space["Picard"]


def test_solvers_are_looked_up_by_name(context, start):
    problem = Pushforward(affine, context)
    assert torch.equal(solve(problem, start).particles, solve(problem, start, Auto()).particles)
    assert type(make("flow", lr=0.5)) is MMDFlow and make("flow", lr=0.5).lr == 0.5
    assert type(make("anderson")) is Anderson and type(make("auto")) is Auto
    solver = Anderson()
    assert make(solver) is solver
    assert {"flow", "anderson", "auto"} <= set(names())


def test_the_solver_in_the_documentation_solves(context, start, picard):
    particles, info = solve(Pushforward(affine, context), start, "picard", tol=1e-4)
    assert info.converged.all() and "picard" in names()
    assert close(particles, affine_solution(context)[:, None].expand(3, 4, 3), 1e-5)
    assert info.evaluations[0] < info.evaluations[2], "samples leave the batch as they finish"
    with fails(ValueError, "solver name 'picard' is taken"):
        register("picard", picard)


def test_the_solver_in_the_documentation_leaves_frozen_particles(context, start, picard):
    frozen = torch.zeros(3, 4, dtype=torch.bool)
    frozen[:, 1] = True
    particles, _ = picard(tol=0.0, max_steps=9).solve(Pushforward(affine, context, None, frozen), start)
    assert torch.equal((particles != start).any(-1), ~frozen)


def test_the_solver_in_the_documentation_serves_a_layer(cloud, picard):
    transport, x = small_transport(), cloud(3, 6, 2)
    layer = DDEQ(transport, 4, solver="picard", tol=1e-6, max_steps=200).double()
    expected = DDEQ(transport, 4, solver=Anderson(tol=1e-6)).double()
    assert type(layer.solver) is picard
    found = layer(x)
    assert found.info.converged.all() and close(found.particles, expected(x).particles, 1e-4)
    found.particles.sum().backward()
    assert all(parameter.grad is not None for parameter in transport.bilinear.parameters())


def test_a_solver_of_ones_own_may_have_options(context, start):
    @dataclasses.dataclass(kw_only=True, eq=False)
    class Damped(IterativeSolver):
        share: float = 0.5

        def step(self, problem, z, y, vjp, state, step):
            return torch.lerp(z, y, self.share), state, y - z

    assert Damped(share=0.7, tol=1e-2).share == 0.7
    assert solve(
        Pushforward(affine, affine_context([0.9] * 3)), start, Damped(tol=1e-2, max_steps=300)
    ).info.converged.all()


def test_every_solver_may_lose_patience(start, picard):
    """Plain iteration that doubles distances is given up."""
    with pytest.warns(ConvergenceWarning):
        info = solve(Pushforward(affine, affine_context([2.0, 0.5, 2.0])), start, picard(patience=5)).info
    assert info.converged.tolist() == [False, True, False]
    assert (info.evaluations[[0, 2]] == 7).all()


def test_a_solver_needs_no_more_than_solve(context, start):
    class Mine:
        tol = 0.0

        def solve(self, problem, start):
            return Anderson(tol=0.0, max_steps=3).solve(problem, start)

    found = solve(Pushforward(affine, context), start, Mine())
    assert torch.equal(found.particles, Anderson(tol=0.0, max_steps=3).solve(Pushforward(affine, context), start)[0])


@pytest.mark.parametrize(
    ("solver", "text"),
    [
        (Anderson(), "Anderson()"),
        (Anderson(tol=0.01, depth=4), "Anderson(tol=0.01, depth=4)"),
        (Anderson(kernel=Riesz(1.0), patience=None), "Anderson(patience=None)"),
        (MMDFlow(kernel=Gaussian(2.0), optimizer=SGD(0.5)), None),
        (MMDFlow(kernel=[Gaussian(2.0), Riesz(1.0)], rescale=True, noise=(0.1, 0.9)), None),
        (Auto(tol=1, anderson={"depth": 4}), "Auto(tol=1.0, anderson={'depth': 4})"),
    ],
    ids=["default", "options", "same kernel", "flow", "kernels", "auto"],
)
def test_what_is_printed_makes_the_same_solver(solver, text):
    again = eval(repr(solver))
    assert type(again) is type(solver) and repr(again) == repr(solver)
    assert text is None or repr(solver) == text
    for item in dataclasses.fields(solver):
        assert getattr(again, item.name) == getattr(solver, item.name)
    copy = dataclasses.replace(solver, tol=0.5)
    assert copy.tol == 0.5 and repr(dataclasses.replace(copy, tol=solver.tol)) == repr(solver)


def test_layers_show_and_pass_on_what_they_solve_with():
    model = Classifier(small_transport(), 3, num_particles=4, solver="auto", tol=0.01, flow={"lr": 0.5})
    assert model.ddeq.solver.tol == 0.01 and model.ddeq.solver.descent.lr == 0.5
    shown = "num_particles=4, solver=Auto(tol=0.01, flow={'lr': 0.5}), backward=Phantom()"
    assert model.ddeq.extra_repr() == shown and shown in repr(model)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("newton",), {}, ValueError, "solver must be one of anderson, auto, flow; got 'newton'"),
        ((3,), {}, TypeError, "solver must be a name or a Solver, got int"),
        ((Anderson,), {}, TypeError, "solver must be a name or a Solver, got the class Anderson"),
        ((Anderson(),), {"tol": 1.0}, TypeError, "options tol need a solver given by name, got Anderson"),
        (("flow",), {"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        (("flow",), {"max_steps": 1.5}, TypeError, "max_steps must be an integer, got float"),
        (("flow",), {"max_steps": True}, TypeError, "max_steps must be an integer, got bool"),
        (("anderson",), {"tol": -1.0}, ValueError, "tol must lie in [0, inf), got -1.0"),
        (("flow",), {"tol": None}, TypeError, "tol must be a number, got NoneType"),
        (("flow",), {"stop_on": "loss"}, ValueError, "stop_on must be one of gradient, mmd; got 'loss'"),
        (("anderson",), {"check_every": 0}, ValueError, "check_every must be at least 1, got 0"),
        (("flow",), {"kernel": "riesz"}, TypeError, "kernel must be a RadialKernel such as Riesz(1.0), got str"),
        (
            ("auto",),
            {"lr": 0.1, "step": 2},
            TypeError,
            "solver 'auto' has no option lr, step: its options are anderson, backend, cuda_graph, flow, kernel, "
            "max_steps, relative, tol",
        ),
    ],
)
def test_bad_options(context, start, arguments, options, error, message):
    with fails(error, message):
        solve(Pushforward(affine, context), start, *arguments, **options)
    with fails(error, message):
        DDEQ(small_transport(), solver=arguments[0], **options)


@pytest.mark.parametrize(
    ("name", "factory", "error", "message"),
    [
        (3, Anderson, TypeError, "name must be a string, got int"),
        ("mine", "Anderson", TypeError, "factory must make a solver when called, got str"),
        ("auto", Anderson, ValueError, "solver name 'auto' is taken"),
    ],
)
def test_bad_registrations(own_names, name, factory, error, message):
    with fails(error, message):
        register(name, factory)
