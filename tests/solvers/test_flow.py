"""The MMD flow: its gradient, descent rules, schedules, several kernels, noise, regulariser and bad options."""

import math

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Gaussian, Laplacian, Mixture, Riesz, squared_mmd, wasserstein_gradient
from ddeq_fast.solvers import SGD, Adam, ConvergenceWarning, FixedTarget, MMDFlow, Pushforward, solve
from problems import affine, affine_context, close, fails, half_turn, small_transport

WEIGHTS = torch.tensor([[1.0, 2.0, 0.5, 1.0], [1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)

RIESZ = Riesz(1.0)


def run(problem, start, kernel=RIESZ, **options):
    """All steps, whatever the residual."""
    return MMDFlow(kernel=kernel, **{"tol": 0.0, "check_every": 1, **options}).solve(problem, start).particles


@pytest.fixture
def clouds(cloud):
    """(start, target)."""
    return cloud(2, 4, 3), cloud(2, 6, 3) + 0.5


@pytest.fixture
def network(cloud):
    """A problem with a transport map, and a start."""
    transport = small_transport().requires_grad_(False)
    return Pushforward(transport, transport.encode(cloud(2, 5, 2))), cloud(2, 4, 8)


def gradient_by_autograd(problem, z, kernel, hold_image=False):
    """Derivative of MMD^2(Z, F(Z)) / 2 with respect to each particle, over its weight; zero for padding."""
    z = z.detach().requires_grad_()
    y = problem.image(z).detach() if hold_image else problem.image(z)
    a = torch.ones(z.shape[:2]).double() if problem.weights is None else problem.weights
    value = squared_mmd(z, y, kernel, x_weights=a, y_weights=a).sum() / 2
    share = (a / a.sum(1, keepdim=True))[..., None]
    return torch.where(share > 0, torch.autograd.grad(value, z)[0] / share.where(share > 0, 1), 0)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("gradient", ["autodiff", "witness"])
def test_one_step_follows_the_wasserstein_gradient(network, kernel, weights, gradient):
    problem, z = network
    problem.weights = weights
    expected = z - 0.3 * gradient_by_autograd(problem, z, kernel, hold_image=gradient == "witness")
    assert close(run(problem, z, kernel, lr=0.3, max_steps=1, gradient=gradient), expected)


def test_the_two_gradients_differ(network):
    problem, z = network
    autodiff, witness = (run(problem, z, max_steps=1, gradient=name) for name in ("autodiff", "witness"))
    assert not close(autodiff, witness, 1e-3)


@pytest.mark.parametrize("gradient", ["autodiff", "witness"])
def test_a_fixed_target_has_one_gradient(clouds, kernel, gradient):
    z, target = clouds
    expected = z - 0.3 * wasserstein_gradient(z, target, kernel)
    assert close(run(FixedTarget(target), z, kernel, lr=0.3, max_steps=1, gradient=gradient), expected)


@pytest.mark.parametrize("gradient", ["autodiff", "witness"])
def test_weighted_and_padded_targets(clouds, gradient):
    z, target = clouds
    b = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5, 0.0]).double().expand(2, 6)
    expected = z - 0.3 * wasserstein_gradient(z, target, x_weights=WEIGHTS, y_weights=b)
    expected[1, 3] = z[1, 3]
    problem = FixedTarget(target, b, WEIGHTS)
    assert close(run(problem, z, lr=0.3, max_steps=1, gradient=gradient), expected)


def test_autodiff_steps_are_differentiated_through_the_map_alone(network):
    """No gradient is left behind in the parameters."""
    problem, z = network
    problem.func.requires_grad_(True)
    run(problem, z, max_steps=2)
    assert all(p.grad is None for p in problem.func.parameters())


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("kernel", [Gaussian(1.0), Laplacian(2.0), Riesz(1.5)], ids=str)
def test_small_steps_descend(clouds, kernel, moving):
    """MMD^2 falls in every step, at the rate |gradient|^2 of a gradient flow at the first."""
    z, target = clouds
    problem = Pushforward(affine, affine_context([0.5, 2.0])) if moving else FixedTarget(target)
    lr, values = 0.01, []
    for steps in range(1, 20, 3):
        particles = run(problem, z, kernel, lr=lr, max_steps=steps)
        values.append(problem.squared_mmd(particles, problem.image(particles), kernel))
    start = problem.squared_mmd(z, problem.image(z), kernel)
    assert all((after < before).all() for before, after in zip([start, *values], values, strict=False))
    slope = (z - run(problem, z, kernel, lr=lr, max_steps=1)).square().sum(-1).mean(-1) / lr
    assert torch.allclose(start - values[0], 2 * slope, rtol=0.1)


def test_flow_finds_an_equilibrium_that_permutes_its_particles(cloud):
    """Antipodal pairs on the circle: fixed as measures, though no point is."""
    z, problem = cloud(3, 4, 2), Pushforward(half_turn, ())
    particles, info = solve(problem, z, "flow", kernel=Gaussian(1.0), lr=1.0, max_steps=400, tol=1e-3)
    assert info.converged.all()
    image = half_turn(particles, None, None)
    assert (torch.cdist(image, particles).amin(-1) < 0.05).all()
    assert (particles - image).norm(dim=-1).amin() > 1


OPTIMIZERS = {
    "sgd": (SGD(), lambda p: torch.optim.SGD(p, 0.2)),
    "momentum": (SGD(0.7), lambda p: torch.optim.SGD(p, 0.2, momentum=0.7)),
    "nesterov": (SGD(0.7, nesterov=True), lambda p: torch.optim.SGD(p, 0.2, momentum=0.7, nesterov=True)),
    "adam": (Adam(), lambda p: torch.optim.Adam(p, 0.2)),
    "adam_other": (Adam(0.5, 0.9, 1e-3), lambda p: torch.optim.Adam(p, 0.2, betas=(0.5, 0.9), eps=1e-3)),
}


@pytest.mark.parametrize("decay", [(1.0, 1), (0.5, 2)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_descent_rules_are_those_of_torch_optim(clouds, name, decay):
    z, target = clouds
    ours, theirs = OPTIMIZERS[name]
    particles = torch.nn.Parameter(z.clone())
    optimizer = theirs([particles])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, decay[1], decay[0])
    for _ in range(6):
        particles.grad = wasserstein_gradient(particles.detach(), target)
        optimizer.step()
        schedule.step()
    found = run(FixedTarget(target), z, lr=0.2, max_steps=6, optimizer=ours, lr_decay=decay)
    assert close(found, particles.detach(), 1e-9)


def test_annealing_shrinks_the_bandwidth_each_step(clouds):
    z, target = clouds
    expected = z
    for sigma in (2.0, 1.0, 0.6, 0.6):
        expected = expected - 0.5 * wasserstein_gradient(expected, target, Gaussian(sigma))
    found = run(FixedTarget(target), z, Gaussian(2.0), lr=0.5, max_steps=4, anneal=(0.5, 0.6))
    assert close(found, expected)


def test_annealing_concerns_bandwidths_alone(clouds):
    z, target = clouds
    expected = z
    for sigma in (2.0, 1.0, 0.5):
        kernel = Mixture(((0.5, Riesz(1.0)), (0.5, Gaussian(sigma))))
        expected = expected - 0.5 * wasserstein_gradient(expected, target, kernel)
    kernels = (Riesz(1.0), Gaussian(2.0))
    assert close(run(FixedTarget(target), z, kernels, lr=0.5, max_steps=3, anneal=(0.5, 0.1)), expected)


def test_residual_of_an_annealed_flow_is_in_the_kernel_of_its_step(clouds):
    z, target = clouds
    flow = MMDFlow(kernel=Gaussian(2.0), lr=0.5, max_steps=4, tol=0.0, check_every=1, anneal=(0.5, 0.6), relative=False)
    particles, info = flow.solve(FixedTarget(target), z)
    assert np.allclose(info.residual, np.sqrt(references.squared_mmd(particles, target, Gaussian(0.6))), rtol=1e-10)


def test_objectives_of_several_kernels_are_averaged(clouds):
    z, target = clouds
    kernels = (Gaussian(0.5), Riesz(1.0), Laplacian(2.0))
    expected = z - 0.3 * sum(wasserstein_gradient(z, target, k) for k in kernels) / 3
    assert close(run(FixedTarget(target), z, kernels, lr=0.3, max_steps=1), expected)


def test_rescaled_objectives_start_at_the_value_of_the_first(clouds):
    z, target = clouds
    kernels = (Gaussian(0.5), Riesz(1.0))
    values = [references.squared_mmd(z, target, k).mean() for k in kernels]
    factors = [1.0, values[0] / values[1]]
    expected = z
    for _ in range(3):
        fields = [c * wasserstein_gradient(expected, target, k) for c, k in zip(factors, kernels, strict=True)]
        expected = expected - 0.3 * sum(fields) / 2
    assert close(run(FixedTarget(target), z, kernels, lr=0.3, max_steps=3, rescale=True), expected)


@pytest.mark.parametrize("options", [{"lr_decay": (1e200, 1)}, {"noise": (1.0, 1e200)}], ids=["lr", "noise"])
def test_factors_that_leave_the_range_of_floats_end_where_no_number_is(clouds, options):
    z, target = clouds
    with pytest.warns(ConvergenceWarning):
        info = solve(FixedTarget(target), z, "flow", max_steps=4, check_every=1, **options).info
    assert not info.converged.any()


@pytest.mark.parametrize("gradient", ["autodiff", "witness"])
def test_noise_displaces_the_points_where_the_field_is_taken(clouds, gradient):
    z, target = clouds
    options = {"lr": 0.3, "max_steps": 2, "noise": (0.5, 0.1), "gradient": gradient}
    torch.manual_seed(3)
    found = run(FixedTarget(target), z, **options)
    torch.manual_seed(3)
    expected = z
    for beta in (0.5, 0.05):
        points = torch.cat((expected, target), 1)
        charges = torch.cat((z.new_full((2, 4), 1 / 4), z.new_full((2, 6), -1 / 6)), 1)
        displaced = expected + beta * torch.randn_like(expected)
        expected = expected - 0.3 * torch.from_numpy(references.field(displaced, points, charges, Riesz(1.0)))
    assert close(found, expected)


def test_noise_is_reproducible_and_follows_the_seed(network):
    problem, z = network
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(run(problem, z, max_steps=3, noise=(0.1, 1.0)))
    assert torch.equal(found[0], found[1]) and not close(found[2], found[0], 1e-3)
    assert not close(run(problem, z, max_steps=3), found[0], 1e-3)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_regulariser_pulls_to_the_origin(clouds, p):
    z, target = clouds
    norm = z.abs().pow(p).sum(-1, keepdim=True).pow(1 / p)
    pull = 0.2 * z.sign() * (z.abs() / norm) ** (p - 1)
    expected = z - 0.3 * (wasserstein_gradient(z, target) + pull)
    assert close(run(FixedTarget(target), z, lr=0.3, max_steps=1, regulariser=(0.2, p)), expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"noise": (0.1, 1.0)}, {"regulariser": (0.2, 2.0)}, {"optimizer": Adam()}, {"optimizer": SGD(0.5)}],
    ids=str,
)
@pytest.mark.parametrize("gradient", ["autodiff", "witness"])
def test_frozen_particles_and_padding_stay(network, gradient, options):
    problem, z = network
    problem.weights = WEIGHTS
    problem.frozen = torch.tensor([[True, False, False, False], [False, True, False, False]])
    stay = problem.frozen | (WEIGHTS == 0)
    moved = (run(problem, z, max_steps=3, gradient=gradient, **options) != z).any(-1)
    assert torch.equal(moved, ~stay)


def test_frozen_particles_still_act_on_the_others(network):
    problem, z = network
    free = run(problem, z, max_steps=1)
    problem.frozen = torch.tensor([[True, False, False, False]] * 2)
    assert close(run(problem, z, max_steps=1)[:, 1:], free[:, 1:])


NAN = math.nan


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel": ()}, ValueError, "kernel must name at least one kernel, got an empty sequence"),
        ({"kernel": (Riesz(1.0), 2)}, TypeError, "kernel must be a RadialKernel such as Riesz(1.0), got int"),
        ({"lr": 0.0}, ValueError, "lr must lie in (0, inf), got 0.0"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got str"),
        ({"gradient": "exact"}, ValueError, "gradient must be one of autodiff, witness; got 'exact'"),
        ({"lr_decay": (0.0, 5)}, ValueError, "lr_decay factor must lie in (0, inf), got 0.0"),
        ({"lr_decay": (0.9, 0)}, ValueError, "lr_decay steps must be at least 1, got 0"),
        ({"lr_decay": (0.9, 2.5)}, TypeError, "lr_decay steps must be an integer, got float"),
        ({"noise": (-0.1, 1.0)}, ValueError, "noise beta must lie in [0, inf), got -0.1"),
        ({"noise": (0.1, NAN)}, ValueError, "noise factor must lie in [0, inf), got nan"),
        ({"anneal": (0.0, 1.0)}, ValueError, "anneal factor must lie in (0, 1], got 0.0"),
        ({"anneal": (0.9, 0.0)}, ValueError, "anneal minimum must lie in (0, inf), got 0.0"),
        ({"regulariser": (0.1, 0.0)}, ValueError, "regulariser p must lie in (0, inf), got 0.0"),
        ({"regulariser": (NAN, 2.0)}, ValueError, "regulariser strength must lie in [0, inf), got nan"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be a descent rule such as SGD(0.9), got str"),
        ({"optimizer": Adam}, TypeError, "optimizer must be a descent rule such as SGD(0.9), got Adam"),
        ({"kernel": "gaussian"}, TypeError, "kernel must be a RadialKernel such as Riesz(1.0), got str"),
        ({"lr_decay": 0.5}, TypeError, "lr_decay must be a pair (factor, steps), got 0.5"),
        ({"noise": (0.5,)}, TypeError, "noise must be a pair (beta, factor), got (0.5,)"),
        ({"regulariser": 1.0}, TypeError, "regulariser must be a pair (strength, p), got 1.0"),
        ({"anneal": (0.9, 0.1)}, ValueError, "anneal needs a kernel with a bandwidth, got Riesz(r=1.0)"),
        ({"rescale": "no"}, TypeError, "rescale must be True or False, got 'no'"),
        ({"stop_together": None}, TypeError, "stop_together must be True or False, got None"),
    ],
)
def test_bad_options(options, error, message):
    with fails(error, message):
        MMDFlow(**options)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (SGD, {"momentum": 1.0}, "momentum must lie in [0, 1), got 1.0"),
        (SGD, {"nesterov": True}, "nesterov needs a momentum above 0, got 0"),
        (Adam, {"beta1": 1.0}, "beta1 must lie in [0, 1), got 1.0"),
        (Adam, {"beta2": -0.1}, "beta2 must lie in [0, 1), got -0.1"),
        (Adam, {"eps": 0.0}, "eps must lie in (0, inf), got 0.0"),
    ],
)
def test_bad_descent_rules(rule, options, message):
    with fails(ValueError, message):
        rule(**options)
