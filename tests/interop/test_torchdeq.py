"""The solvers inside torchdeq: its cores, phantom gradients and implicit differentiation, statistics and shapes."""

import sys

import pytest
import torch

from ddeq_fast.gradients import ImplicitFunction
from ddeq_fast.interop.original import mmd_gf, riesz_kernel
from ddeq_fast.interop.torchdeq import register
from ddeq_fast.solvers import Anderson, MMDFlow, Pushforward
from ddeq_fast.sums.radial import Gaussian
from problems import close, fails

torchdeq = pytest.importorskip("torchdeq")
register()
OPTIONS = {"mmd": {"lr": 0.5}, "mmd_anderson": {}}
FACTORIES = {"mmd": MMDFlow, "mmd_anderson": Anderson}
CORES = ["sliced", "indexing"]


@pytest.fixture(params=OPTIONS)
def name(request):
    return request.param


@pytest.fixture
def start(cloud):
    return cloud(3, 4, 2)


@pytest.fixture
def parameters(cloud):
    """(A, x) of z -> tanh(z A) / 2 + x, which contracts to another point for every particle."""
    return cloud(2, 2, grad=True), cloud(3, 4, 2, grad=True)


def contraction(parameters):
    matrix, x = parameters
    return lambda z: torch.tanh(z @ matrix) / 2 + x


def direct(name, func, start, **options):
    """The solve that torchdeq should run."""
    return FACTORIES[name](**OPTIONS[name], **options).solve(Pushforward(lambda z, *_: func(z)), start)


def gradients(outputs, parameters):
    """Of a loss that weighs every number of the outputs differently."""
    loss = sum((z * torch.linspace(1, 2, z.numel()).view_as(z)).sum() for z in outputs)
    return torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("steps", [1, 3])
def test_phantom_gradient(name, core, steps, start, parameters):
    """As many damped steps from the detached equilibrium."""
    func = contraction(parameters)
    deq = torchdeq.get_deq(core=core, f_solver=name, f_max_iter=6, f_tol=0.0, grad=steps, tau=0.8)
    (out,), _ = deq(func, start, solver_kwargs=OPTIONS[name])
    z = direct(name, func, start, max_steps=6, tol=0.0).particles
    for _ in range(steps):
        z = 0.8 * func(z) + 0.2 * z
    assert close(out.detach(), z.detach())
    for got, expected in zip(gradients([out], parameters), gradients([z], parameters), strict=True):
        assert close(got, expected)


@pytest.mark.parametrize("core", CORES)
def test_implicit_differentiation_at_a_fixed_point(core, start, parameters):
    """The gradient is that of the equilibrium itself, found by many plain iterations."""
    func = contraction(parameters)
    options = {"f_max_iter": 60, "f_tol": 1e-8, "ift": True, "b_max_iter": 100, "b_tol": 1e-12}
    deq = torchdeq.get_deq(core=core, f_solver="mmd_anderson", **options)
    (out,), _ = deq(func, start)
    z = start
    for _ in range(100):
        z = func(z)
    assert close(out.detach(), z.detach(), 1e-6)
    for got, expected in zip(gradients([out], parameters), gradients([z], parameters), strict=True):
        assert close(got, expected, 1e-6)


@pytest.mark.parametrize("core", CORES)
def test_implicit_differentiation_anywhere(name, core, start, parameters):
    """The linear system is that of the cloud the solver returned, converged or not."""
    func = contraction(parameters)
    options = {"f_max_iter": 5, "f_tol": 0.0, "hook_ift": True, "b_max_iter": 200, "b_tol": 1e-13}
    deq = torchdeq.get_deq(core=core, f_solver=name, **options)
    (out,), _ = deq(func, start, solver_kwargs=OPTIONS[name])
    z = direct(name, func, start, max_steps=5, tol=0.0).particles
    problem = Pushforward(lambda z, *_: func(z))
    tracked, _ = ImplicitFunction(method="gmres", max_steps=60, tol=1e-12).attach(problem, z)
    assert close(out.detach(), tracked.detach())
    for got, expected in zip(gradients([out], parameters), gradients([tracked], parameters), strict=True):
        assert close(got, expected, 1e-8)


def test_indexing_samples_the_trajectory(name, start, parameters):
    func = contraction(parameters)
    deq = torchdeq.get_deq(core="indexing", f_solver=name, f_max_iter=6, f_tol=0.0, indexing=[1, 4])
    outputs, _ = deq(func, start, solver_kwargs=OPTIONS[name])
    assert len(outputs) == 3
    clouds = []
    final = FACTORIES[name](**OPTIONS[name], max_steps=6, tol=0.0).solve(
        Pushforward(lambda z, *_: func(z)), start, callback=lambda step, z, _: clouds.append(z)
    )
    for out, cloud in zip(outputs, (clouds[1], clouds[4], final.particles), strict=True):
        assert close(out, func(cloud))
    assert all(g.any() for g in gradients(outputs, parameters))


def test_indexing_of_a_solve_that_ends_earlier(start, parameters):
    """Every index has its cloud, so that the last gradient, the implicit one, meets the equilibrium."""
    func = contraction(parameters)
    options = {"f_max_iter": 60, "f_tol": 1e-3, "indexing": [1, 40], "ift": True}
    outputs, info = torchdeq.get_deq(core="indexing", f_solver="mmd_anderson", **options)(func, start)
    z = direct("mmd_anderson", func, start, max_steps=60, tol=1e-3, relative=False).particles
    assert info["nstep"].max() < 40 and len(outputs) == 3
    assert close(outputs[1], func(z)) and close(outputs[2], func(z)) and not close(outputs[0], func(z), 1e-3)


def test_the_best_cloud_of_anderson_ends_the_trajectory(start):
    """Which the iteration has left again: the map is steep, and steps run out."""

    def func(z):
        return torch.sin(7 * z)

    z, trajectory, info = torchdeq.solver.get_solver("mmd_anderson")(func, start, 7, 0.0, "rel", [7], patience=None)
    clouds = []
    expected = Anderson(max_steps=7, tol=0.0, patience=None).solve(
        Pushforward(lambda z, *_: func(z)), start, callback=lambda *call: clouds.append(call[1])
    )
    assert torch.equal(trajectory[0], z) and torch.equal(z, expected.particles)
    assert not torch.equal(clouds[-1], z)
    assert torch.equal(info["rel_lowest"], expected.info.residual)


@pytest.mark.parametrize("n_states", [1, 3])
def test_slices_go_on_from_each_other(name, n_states, start, parameters):
    func = contraction(parameters)
    deq = torchdeq.get_deq(core="sliced", f_solver=name, f_max_iter=6, f_tol=0.0, n_states=n_states)
    outputs, _ = deq(func, start, solver_kwargs=OPTIONS[name])
    z = start
    for out in outputs:
        z = func(direct(name, func, z, max_steps=6 // n_states, tol=0.0).particles)
        assert close(out, z)
    assert len(outputs) == n_states


@pytest.mark.parametrize("core", CORES)
def test_evaluation_returns_the_equilibrium(name, core, start, parameters):
    func = contraction(parameters)
    deq = torchdeq.get_deq(core=core, f_solver=name, f_max_iter=5, f_tol=0.0, eval_factor=2.0).eval()
    with torch.no_grad():
        (out,), info = deq(func, start, solver_kwargs=OPTIONS[name])
    assert torch.equal(out, direct(name, func, start, max_steps=10, tol=0.0).particles)
    assert info["nstep"].tolist() == [10.0] * 3 and not out.requires_grad


@pytest.mark.parametrize("mode", ["abs", "rel"])
def test_statistics(name, mode, start, parameters):
    """Residuals of every step, in both modes, whichever of them stops the solve."""
    func = contraction(parameters)
    tol = {"abs": 0.35, "rel": 0.6}[mode]
    deq = torchdeq.get_deq(core="sliced", f_solver=name, f_max_iter=80, f_tol=tol, f_stop_mode=mode).eval()
    (z,), info = deq(func, start, solver_kwargs={**OPTIONS[name], "check_every": 1})
    looks, problem = [], Pushforward(lambda z, *_: func(z))
    solver = FACTORIES[name](**OPTIONS[name], max_steps=80, tol=tol, relative=mode == "rel", check_every=1)
    _, expected = solver.solve(problem, start, callback=lambda step, z, _: looks.append(z))
    assert torch.equal(info["nstep"], (expected.evaluations - 1).double()) and 1 < info["nstep"].max() < 80
    final, first = (problem.squared_mmd(z, func(z), solver.kernel).sqrt() for z in (z, start))
    assert info[f"{mode}_lowest"].max() <= tol
    assert torch.allclose(info["abs_lowest"], final) and torch.allclose(info["rel_lowest"], final / first)
    for kind, scale in (("abs", 1), ("rel", first)):
        trace = info[f"{kind}_trace"]
        assert trace.shape == (3, info["nstep"].max() + 1)
        assert torch.allclose(trace[:, 0], first / scale) and torch.equal(trace[:, -1], info[f"{kind}_lowest"])
        if name == "mmd":  # Anderson reports its best so far
            expected_trace = [problem.squared_mmd(look, func(look), solver.kernel).sqrt() / scale for look in looks]
            assert torch.allclose(trace, torch.stack(expected_trace, 1))


def test_a_start_at_its_equilibrium(name, start):
    """Takes no step, and its relative residual is zero, not undefined."""
    for mode in ("abs", "rel"):
        z, trajectory, info = torchdeq.solver.get_solver(name)(lambda z: z.clone(), start, stop_mode=mode, indexing=[3])
        assert torch.equal(z, start) and torch.equal(trajectory[0], start)
        for key in ("abs_trace", "rel_trace", "abs_lowest", "rel_lowest", "nstep"):
            assert not info[key].any()


def test_options_weights_and_frozen_particles(start, parameters):
    func, weights = contraction(parameters), torch.ones(3, 4).double()
    weights[:, 3] = 0
    frozen = torch.zeros(3, 4, 1, dtype=torch.bool)
    frozen[1, 0] = True
    options = {"kernel": Gaussian(2.0), "lr": 1.5, "check_every": 4}
    z, _, _ = torchdeq.solver.get_solver("mmd")(func, start, 8, 0.0, weights=weights, frozen=frozen, **options)
    expected = MMDFlow(max_steps=8, tol=0.0, **options).solve(
        Pushforward(lambda z, *_: func(z), None, weights, frozen[..., 0]), start
    )
    assert torch.equal(z, expected.particles)
    assert torch.equal(z[:, 3], start[:, 3]) and torch.equal(z[1, 0], start[1, 0])


@pytest.mark.parametrize("no_stat", [False, True])
def test_several_tensors_are_refused(name, no_stat, start):
    deq = torchdeq.get_deq(core="sliced", f_solver=name)
    deq.no_stat = no_stat
    got = "list" if no_stat else "shape (3, 16)"
    with fails(ValueError, f"z_init must be one tensor of clouds (B, n, d), not several packed into one; got {got}"):
        deq(lambda a, b: (a, b), [start, start])


def test_bad_options(name, start):
    solver = torchdeq.solver.get_solver(name)
    with fails(ValueError, "stop_mode must be one of abs, rel; got 'both'"):
        solver(torch.sin, start, stop_mode="both")
    with fails(ValueError, "max_iter must be at least 1, got 0"):
        solver(torch.sin, start, 0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentum'"):
        solver(torch.sin, start, momentum=0.5)


def test_without_torchdeq(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdeq.solver", None)
    with pytest.raises(ImportError, match=r'torchdeq.solver is needed for this: pip install "ddeq_fast\[torchdeq\]"'):
        register()


@pytest.mark.parametrize("core", CORES)
def test_the_original_solver_can_be_registered_too(core, start, parameters, monkeypatch):
    """As the original code does, with its keywords."""
    monkeypatch.setattr(torchdeq.solver, "_solvers", dict(torchdeq.solver._solvers))
    torchdeq.solver.register_solver("original", mmd_gf)
    func = contraction(parameters)
    keywords = {"beta": 0, "gamma_beta": 0, "optim_kwargs": {"lr": 0.5}, "scheduler_kwargs": {"gamma": 1.0}}
    keywords.update(stop_type="mmd", autodiff=True, rescale_autodiff=True, kernel=riesz_kernel, mask=False, reg=0.0)
    deq = torchdeq.get_deq(core=core, f_solver="original", f_max_iter=12, f_tol=1e-4, f_stop_mode="rel")
    (out,), info = deq(func, start, solver_kwargs=keywords)
    z = func(direct("mmd", func, start, max_steps=12, tol=0.0).particles)
    assert close(out, z) and float(info["nstep"]) == 12 and 0 < float(info["rel_lowest"]) < 1
    for got, expected in zip(gradients([out], parameters), gradients([z], parameters), strict=True):
        assert close(got, expected)
