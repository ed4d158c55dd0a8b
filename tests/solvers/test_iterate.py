"""What holds for every solver: samples are independent, leave when done, and are reported truthfully."""

import threading
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import references
from ddeq_fast import Riesz
from ddeq_fast.solvers import Anderson, Auto, ConvergenceWarning, FixedTarget, MMDFlow, Pushforward, quiet, solve
from problems import FLOW, FLOWS, SOLVERS, STEPS, Recorder, affine, affine_context, close, fails, small_transport

Z0 = torch.ones(3, 4, 3).double()


def test_samples_finish_at_their_own_time(solver, context, start):
    info = solve(Pushforward(affine, context), start, solver).info
    assert info.converged.all() and (info.residual <= solver.tol).all()
    assert len(info.evaluations.unique()) > 1 and info.evaluations.max() <= 100


def test_samples_solved_together_equal_samples_solved_alone(solver, context, start):
    problem = Pushforward(affine, context)
    together, info = solve(problem, start, solver)
    for i in range(3):
        one = torch.tensor([i])
        alone, info_alone = solve(problem.select(one), start[one], solver)
        assert close(together[one], alone, 1e-9)
        assert info.evaluations[i] == info_alone.evaluations
        assert torch.allclose(info.residual[one], info_alone.residual, rtol=1e-6)


def test_a_map_without_context_gives_the_same(solver, context, start):
    """It closes over the whole batch, so that finished samples wait instead of leaving."""
    closed = Recorder(lambda z, _, weights: affine(z, context, weights))
    with_context, info = solve(Pushforward(affine, context), start, solver)
    without, info_closed = solve(Pushforward(closed, None), start, solver)
    assert set(closed.batches) == {3}
    if not isinstance(solver, Auto):  # there all samples try the flow when one must
        assert close(without, with_context, 1e-9)
        assert torch.equal(info.evaluations, info_closed.evaluations)
        assert info_closed.evaluations.max() == len(closed.batches)


def test_finished_samples_leave_the_batch(solver, context, start):
    func = Recorder(affine)
    info = solve(Pushforward(func, context), start, solver).info
    assert func.batches[0] == 3 and func.batches[-1] < 3
    assert sum(func.batches) == info.evaluations.sum()
    if not isinstance(solver, Auto):
        assert func.batches == sorted(func.batches, reverse=True)
        expected = [(info.evaluations > call).sum() for call in range(len(func.batches))]
        assert func.batches == expected


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "gradient"])
@pytest.mark.parametrize("weighted", [False, True])
def test_residual_is_that_of_the_returned_particles(name, context, start, weighted):
    solver = SOLVERS[name]
    kernel = Riesz(1.0) if isinstance(solver, Auto) else solver.kernel
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0]).double().expand(3, 4) if weighted else None
    particles, info = solve(Pushforward(affine, context, weights), start, solver)

    def mmd(z):
        return np.sqrt(references.squared_mmd(z, affine(z, context, None), kernel, weights, weights))

    assert np.allclose(info.scale, mmd(start), rtol=1e-10)
    assert np.allclose(info.residual, mmd(particles) / mmd(start), rtol=1e-8, atol=1e-9)
    assert info.residual.dtype == info.scale.dtype == torch.float64


@pytest.mark.parametrize("name", ["flow", "anderson", "auto"])
def test_absolute_residuals(name, context, start):
    options = {"relative": False, "tol": 0.3}
    auto = Auto(**options, anderson={"max_steps": 1}, flow=STEPS)
    solver = {"flow": MMDFlow(**STEPS, **options), "anderson": Anderson(**options), "auto": auto}[name]
    particles, info = solve(Pushforward(affine, context), start, solver)
    expected = np.sqrt(references.squared_mmd(particles, affine(particles, context, None), Riesz(1.0)))
    assert np.allclose(info.residual, expected, rtol=1e-8) and (info.residual <= 0.3).all()
    assert (info.scale == 1).all()


def test_start_is_left_alone_and_the_solution_has_no_graph(solver, start):
    context = tuple(t.requires_grad_() for t in affine_context([0.001, 0.5, 0.8]))
    start = start.requires_grad_()
    before = start.detach().clone()
    particles = solve(Pushforward(affine, context), start, solver).particles
    assert torch.equal(start, before) and not particles.requires_grad
    assert particles.data_ptr() != start.data_ptr()


def test_a_start_that_is_a_fixed_point_takes_one_evaluation(solver, start):
    func = Recorder(lambda z, context, weights: z.clone())
    particles, info = solve(Pushforward(func, ()), start, solver)
    assert func.batches == [3] and info.evaluations.tolist() == [1, 1, 1]
    assert info.residual.tolist() == [0.0, 0.0, 0.0] and info.converged.all()
    assert torch.equal(particles, start)


def test_one_fixed_sample_does_not_stop_the_others(solver, start):
    """Sample 0 starts at the equilibrium of z -> -z / 2: all its particles at the origin."""
    start = start.clone()
    start[0] = 0
    problem = Pushforward(lambda z, context, weights: context[0] * z, (torch.full((3, 1, 1), -0.5).double(),))
    particles, info = solve(problem, start, solver)
    assert info.evaluations[0] == 1 and info.residual[0] == 0 and not particles[0].any()
    assert (info.evaluations[1:] > 1).all() and (info.residual[1:] > 0).all() and info.converged.all()


@pytest.mark.parametrize("name", [*FLOWS, "anderson"])
def test_float32(name, start):
    particles, info = solve(
        Pushforward(affine, affine_context([0.1] * 3, dtype=torch.float32)), start.float(), SOLVERS[name]
    )
    assert particles.dtype == torch.float32 and info.converged.all() and info.residual.dtype == torch.float64


def test_frozen_particles_do_not_move(solver, context, start):
    """And the others reach what equilibrium they can: the frozen ones count in the residual."""
    frozen = torch.zeros(3, 4, dtype=torch.bool)
    frozen[:, 0] = True
    particles, info = solver.solve(Pushforward(affine, context, frozen=frozen), start)
    assert torch.equal(particles[:, 0], start[:, 0])
    assert not torch.isclose(particles[:, 1:], start[:, 1:]).any()
    assert (info.residual < 1).all()


def test_padding_of_the_cloud_has_no_influence(solver, start, cloud):
    """With a map that itself respects it."""
    transport = small_transport(dim_lift=(4, 6, 8))
    z, x = 2 * cloud(3, 4, 8), cloud(3, 6, 2)
    weights = torch.ones(3, 6).double()
    weights[:, 4:] = 0
    problem = Pushforward(transport, transport.encode(x))
    padded = Pushforward(transport, problem.context, weights)
    expected, info = solver.solve(problem, z)
    particles, info_padded = solver.solve(padded, torch.cat((z, 5 * cloud(3, 2, 8)), 1))
    assert close(particles[:, :4], expected, 1e-9)
    assert torch.equal(info.evaluations, info_padded.evaluations)
    assert torch.allclose(info.residual, info_padded.residual, rtol=1e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_tolerance_zero_runs_all_steps_without_a_warning(name, context, start):
    options = {"gradient": "witness"} if name == "witness" else {}
    solver = MMDFlow(max_steps=7, tol=0.0, optimizer=SOLVERS[name].optimizer, **options)
    info = solve(Pushforward(affine, context), start, solver).info
    assert info.evaluations.tolist() == [8, 8, 8] and not info.converged.any()


@pytest.mark.parametrize("name", ["anderson", "auto"])
def test_tolerance_zero_gives_no_warning(name, start):
    """Neither where the tolerance is missed nor where it is met: sample 0 starts at its solution."""
    start = start.clone()
    start[0] = 0
    problem = Pushforward(lambda z, context, weights: z.sin(), ())
    info = solve(problem, start, name, tol=0.0, **({} if name == "anderson" else {"flow": {"max_steps": 5}})).info
    assert info.converged.tolist() == [True, False, False]


def test_warning_counts_the_samples_above_the_tolerance(context, start):
    message = r"^Anderson: 2 of 3 samples ended above a residual of 0.001 \(worst 0\.\d{1,4}\)$"
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        info = solve(Pushforward(affine, affine_context([1e-4, 0.5, 0.8])), start, "anderson", max_steps=2).info
    assert info.converged.tolist() == [True, False, False]
    assert caught[0].filename == __file__


def test_nothing_is_reported_when_all_samples_converge(context, start, recwarn):
    solve(Pushforward(affine, context), start, "anderson")
    assert not recwarn.list


@pytest.mark.parametrize("check_every", [1, 4, 50])
def test_residuals_are_looked_at_every_so_often(context, start, check_every):
    solver = MMDFlow(**{**FLOW, "check_every": check_every})
    evaluations = solve(Pushforward(affine, context), start, solver).info.evaluations
    assert ((evaluations - 1) % check_every == 0).all()
    often = solve(Pushforward(affine, context), start, SOLVERS["flow"]).info.evaluations
    assert (evaluations >= often).all() and (evaluations - often < check_every).all()


class Waits(TorchDispatchMode):
    """Counts operations for whose result the host must wait."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize(
    "solver",
    [MMDFlow(check_every=2, tol=0.3, max_steps=12), Anderson(check_every=2, tol=1e-7, max_steps=12)],
    ids=["flow", "anderson"],
)
def test_the_host_waits_at_checks_only(context, start, solver, separable):
    """On a GPU the steps between two checks follow one another unwatched, also when some samples are done."""
    waits, seen = Waits(), []

    def func(z, given, weights):
        seen.append(waits.count)
        return affine(z, context if given is None else given, weights)

    with waits:
        info = solver.solve(Pushforward(func, context if separable else None), start).info
    between = [after - before for before, after in pairwise(seen)]
    assert len(info.evaluations.unique()) > 1 and len(between) >= 4
    assert all((count > 0) == (step % 2 == 0) for step, count in enumerate(between))


def test_the_batch_can_stop_as_one(context, start):
    solver = MMDFlow(stop_together=True, **FLOW)
    particles, info = solve(Pushforward(affine, context), start, solver)
    assert len(info.evaluations.unique()) == 1

    def mean(z):
        return references.squared_mmd(z, affine(z, context, None), Riesz(1.0)).mean()

    assert np.allclose(info.residual, np.sqrt(mean(particles) / mean(start)), rtol=1e-8)
    before = MMDFlow(**{**FLOW, "tol": 0.0, "max_steps": int(info.evaluations[0]) - 2}).solve(
        Pushforward(affine, context), start
    )
    assert np.sqrt(mean(before.particles) / mean(start)) > 0.4


def test_stop_on_gradient_reports_the_gradient(context, start):
    """Relative to that of the start, per sample."""
    solver, problem = SOLVERS["gradient"], Pushforward(affine, context)
    particles, info = solve(problem, start, solver)

    def norm(z):
        z = z.detach().requires_grad_()
        g = torch.autograd.grad(problem.squared_mmd(z, problem.image(z), solver.kernel).sum(), z)[0]
        return torch.linalg.vector_norm(g.flatten(1), dim=1)

    assert torch.allclose(info.residual, norm(particles) / norm(start), rtol=1e-8)


def test_a_given_scale_replaces_that_of_the_start(context, start):
    problem, scale = Pushforward(affine, context), torch.tensor([1.0, 2.0, 4.0]).double()
    particles, info = SOLVERS["flow"].solve(problem, start, scale=scale)
    expected = np.sqrt(references.squared_mmd(particles, affine(particles, context, None), Riesz(1.0)))
    assert torch.equal(info.scale, scale) and np.allclose(info.residual, expected / scale.numpy(), rtol=1e-8)


def test_values_that_are_not_finite_are_not_called_converged(solver, start):
    with pytest.warns(ConvergenceWarning, match="3 of 3 samples"):
        info = solve(Pushforward(lambda z, context, weights: z * torch.nan, ()), start, solver).info
    assert not info.converged.any()


def test_fixed_target_with_another_number_of_points(cloud):
    """Descended to by the flow; by default too."""
    start, target = cloud(2, 6, 2), cloud(2, 9, 2) + 1
    options = {"lr": 0.2, "max_steps": 100}
    by_flow = solve(FixedTarget(target), start, "flow", tol=0.2, **options)
    by_default = solve(FixedTarget(target), start, "auto", tol=0.2, flow=options)
    assert by_flow.info.converged.all() and by_default.info.converged.all()


def test_a_start_that_overflows_makes_nothing_small_beside_it(start):
    """The discrepancy of the first clouds is beyond float64: what comes after is no converged part of it."""
    with pytest.warns(ConvergenceWarning, match="3 of 3 samples"):
        info = solve(Pushforward(lambda z, context, weights: 0.5 * z.tanh(), ()), 1e200 * start, "anderson").info
    assert not info.converged.any()


@pytest.mark.parametrize("far", [1e30, 3e38])
def test_padding_of_the_cloud_may_lie_anywhere(solver, cloud, far):
    """In float32, where its square overflows, and it stays where it is."""
    transport = small_transport(dtype=torch.float32)
    z, weights = 2 * cloud(3, 6, 8, dtype=torch.float32), torch.ones(3, 6)
    weights[:, 4:] = 0
    problem = Pushforward(transport, transport.encode(cloud(3, 6, 2, dtype=torch.float32)), weights)
    found = []
    for value in (0.0, far):
        z[:, 4:] = value
        found.append(solver.solve(problem, z))
    assert torch.equal(found[1].particles[:, :4], found[0].particles[:, :4])
    assert torch.equal(found[1].info.residual, found[0].info.residual) and found[1].info.residual.isfinite().all()
    assert (found[1].particles[:, 4:] == far).all()


def test_forward_mode_and_vmap_are_refused(solver, context, start):
    def of_start(z):
        return solve(Pushforward(affine, context), z, solver).particles

    def of_context(offset):
        return solve(Pushforward(affine, (context[0], offset)), start, solver).particles

    def of_a_closure(offset):
        return solve(Pushforward(lambda z, given, weights: affine(z, (context[0], offset), weights)), start, solver)[0]

    for function, value in ((of_start, start), (of_context, context[1]), (of_a_closure, context[1])):
        with pytest.raises(RuntimeError, match="a solve has no forward-mode derivatives"):
            torch.func.jvp(function, (value,), (value,))
    with pytest.raises(RuntimeError, match=r"a solve cannot run under torch\.vmap"):
        torch.vmap(of_start)(start[None])


def test_warnings_are_quieted_for_one_thread(start):
    """And filters of warnings, which are the whole process's, are left alone."""
    problem, filters, heard = Pushforward(lambda z, context, weights: z + 1, ()), list(warnings.filters), []
    inside, done = threading.Event(), threading.Event()

    def quietly():
        with quiet():
            inside.set()
            done.wait(10)
            solve(problem, start, "anderson", max_steps=2)

    thread = threading.Thread(target=quietly)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        thread.start()
        assert inside.wait(10)
        heard.append(list(warnings.filters) == filters)
        solve(problem, start, "anderson", max_steps=2)
        done.set()
        thread.join()
        heard.append(list(warnings.filters) == filters)
    assert all(heard) and [entry.category for entry in caught] == [ConvergenceWarning]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((affine, Z0), {}, TypeError, "problem must be a Pushforward, got function"),
        ((Pushforward(affine), Z0), {"callback": 3}, TypeError, "callback must be callable, got int"),
        (
            (Pushforward(affine, affine_context([0.5, 0.5])), Z0),
            {},
            ValueError,
            "context must hold tensors of 3 clouds, as start does, got (2, 3, 3)",
        ),
        (
            (Pushforward(lambda z, context, weights: z[:, :2]), Z0),
            {},
            ValueError,
            "func must map clouds (B, n, d) to as many points, (3, 4, 3), got (3, 2, 3)",
        ),
        (
            (Pushforward(lambda z, context, weights: None), Z0),
            {},
            TypeError,
            "func must return a tensor, the image of z, got NoneType",
        ),
        (
            (Pushforward(small_transport()), Z0),
            {},
            ValueError,
            "start must have points in dimension 8, got 3",
        ),
        (
            (Pushforward(small_transport()), torch.zeros(3, 4, 8, dtype=torch.float64)),
            {},
            TypeError,
            "context must be a Context, of TransportMap.encode, got NoneType",
        ),
    ],
)
@pytest.mark.parametrize("name", ["anderson", "flow"])
def test_bad_problems(name, arguments, options, error, message):
    with fails(error, message):
        solve(*arguments, name, **options)


@pytest.mark.parametrize(
    "func, got",
    [
        (3, "int"),
        (lambda z: z, "one that takes (z): a function f(z) is passed as lambda z, context, weights: f(z)"),
        (lambda z, x: z, "one that takes (z, x): a function f(z) is passed as lambda z, context, weights: f(z)"),
        (
            torch.nn.Linear(2, 2),
            "one that takes (input): a function f(z) is passed as lambda z, context, weights: f(z)",
        ),
    ],
    ids=["int", "f(z)", "f(z, x)", "module"],
)
def test_func_must_be_callable(func, got):
    with fails(TypeError, f"func must be callable as func(z, context, weights), got {got}"):
        Pushforward(func)


@pytest.mark.parametrize(
    "func", [lambda z, *rest: z, lambda *all: all[0], lambda z, a, b=None, c=1: z, torch.lerp], ids=list("abcd")
)
def test_func_may_take_more_or_not_say(func):
    Pushforward(func)
