"""Particles with labels: measures on the product space, where every particle is paired with its own image."""

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Gaussian, Riesz
from ddeq_fast.solvers import Anderson, Auto, MMDFlow, Pushforward, solve
from problems import close, fails, small_transport

SOLVERS = {
    "flow": MMDFlow(max_steps=12, lr=1.0, tol=0.0),
    "witness": MMDFlow(kernel=Gaussian(2.0), gradient="witness", max_steps=12, tol=0.0),
    "anderson": Anderson(tol=1e-4),
    "auto": Auto(tol=1e-5, anderson={"max_steps": 4}, flow={"max_steps": 12}),
}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=[*SOLVERS])
ORDER = [3, 0, 4, 2, 1]


def labelled(x, labels, weights=None, dtype=torch.float64, **parts):
    transport = small_transport(dim_label=3, dtype=dtype)
    context = transport.labelled(transport.encode(x), labels, weights)
    return Pushforward(transport, context, weights, labels=labels, **parts)


@pytest.fixture
def x(cloud):
    return 2 * cloud(3, 7, 2)


@pytest.mark.filterwarnings("ignore::ddeq_fast.ConvergenceWarning")
@each_solver
def test_pairs_of_particle_and_label_permute_and_points_of_x_do_not_matter(solver, x, cloud):
    labels, start = cloud(3, 5, 3), cloud(3, 5, 8)
    expected = solve(labelled(x, labels), start, solver)
    found = solve(labelled(x.flip(1), labels[:, ORDER]), start[:, ORDER], solver)
    assert close(found.particles, expected.particles[:, ORDER], 1e-7)
    assert torch.allclose(found.info.residual, expected.info.residual, rtol=1e-6)
    other = solve(labelled(x, labels), start[:, ORDER], MMDFlow(max_steps=1, tol=0.0))
    assert not close(other.particles, expected.particles[:, ORDER], 1e-3)


def test_the_residual_tells_a_permuted_cloud_from_a_fixed_one(x, cloud):
    """The marginal one does not."""
    labels, z = cloud(3, 5, 3), cloud(3, 5, 8)
    problem, marginal = (
        Pushforward(lambda z, c, w: z[:, ORDER], None, labels=labels, residual_space=space)
        for space in ("product", "marginal")
    )
    y = problem.image(z)
    assert (marginal.squared_mmd(z, y, Riesz(1.0)).abs() < 1e-14).all()
    expected = references.squared_mmd(torch.cat((z, labels), 2), torch.cat((y, labels), 2), Riesz(1.0))
    assert np.allclose(problem.squared_mmd(z, y, Riesz(1.0)), expected) and (expected > 1e-2).all()
    assert not (Pushforward(lambda z, c, w: z, None, labels=labels).squared_mmd(z, z, Riesz(1.0)) > 1e-14).any()


@pytest.mark.parametrize("gradient", ["autodiff", "witness"])
def test_the_flow_descends_the_product_discrepancy(x, cloud, gradient):
    labels, z = cloud(3, 5, 3), cloud(3, 5, 8)
    weights = torch.tensor([[1.0, 2, 0.5, 1, 0]] * 3).double()
    problem, solver = labelled(x, labels, weights), MMDFlow(kernel=Gaussian(2.0), gradient=gradient)
    y, vjp = problem.linearise(z)
    found = solver.wasserstein_gradient(problem, z, y, vjp if solver.needs_vjp else None, solver.kernel)
    leaf = z.clone().requires_grad_()
    image = problem.image(leaf) if gradient == "autodiff" else y
    share = weights / weights.sum(1, keepdim=True)
    (slope,) = torch.autograd.grad(problem.squared_mmd(leaf, image, solver.kernel).sum() / 2, leaf)
    assert close(found[:, :4], slope[:, :4] / share[:, :4, None], 1e-9) and not found[:, 4].any()


@each_solver
@pytest.mark.filterwarnings("ignore::ddeq_fast.ConvergenceWarning")
def test_padding_and_frozen_particles(solver, x, cloud):
    labels, start = cloud(3, 5, 3), cloud(3, 5, 8)
    weights, frozen = torch.tensor([[1.0, 2, 1, 1, 0]] * 3).double(), torch.zeros(3, 5, dtype=torch.bool)
    frozen[:, 0] = True
    found = []
    for far in (0.0, 1e200):
        labels[:, 4], start[:, 4] = far, far
        found.append(solve(labelled(x, labels, weights, frozen=frozen), start, solver))
    near, away = found
    alone = solve(labelled(x, labels[:, :4], weights[:, :4], frozen=frozen[:, :4]), start[:, :4], solver)
    assert torch.equal(near.particles[:, :4], away.particles[:, :4]) and torch.equal(near.info[1], away.info[1])
    assert torch.equal(near.particles[:, 0], start[:, 0])
    assert close(near.particles[:, :4], alone.particles, 1e-9)


def test_samples_that_finish_leave_with_their_labels(x, cloud):
    labels, start, solver = cloud(3, 5, 3), cloud(3, 5, 8), Anderson(tol=1e-5)
    start[1] *= 1e3
    together = solve(labelled(x, labels), start, solver)
    assert len(set(together.info.evaluations.tolist())) > 1
    for i in range(3):
        alone = solve(labelled(x[i : i + 1], labels[i : i + 1]), start[i : i + 1], solver)
        assert close(together.particles[i : i + 1], alone.particles, 1e-8)


def test_float32_and_bfloat16(x, cloud):
    labels, start = cloud(3, 5, 3).float(), torch.zeros(3, 5, 8)
    problem = labelled(x.float(), labels, dtype=torch.float32)
    expected = solve(problem, start, Anderson(tol=1e-3)).particles
    transport = problem.func
    transport.network_dtype = torch.bfloat16
    context = transport.labelled(transport.encode(x.float()), labels)
    found = solve(Pushforward(transport, context, labels=labels), start, Anderson(tol=5e-2))
    assert found.particles.dtype == torch.float32 and found.info.converged.all()
    assert close(found.particles, expected, 0.1)


Z = torch.zeros(2, 4, 3)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (Z[0], ValueError, "labels must have shape (2, 4, de), as start has, got (4, 3)"),
        (Z[:, :3], ValueError, "labels must have shape (2, 4, de), as start has, got (2, 3, 3)"),
        (Z.double(), TypeError, "labels has dtype torch.float64 but start has torch.float32"),
        (Z.long(), TypeError, "labels must have a floating-point dtype, got torch.int64"),
        (Z / 0, ValueError, "labels must be finite, got 24 NaN or infinite values of 24"),
        (Z.numpy(), TypeError, "labels must be a torch.Tensor, got ndarray"),
        (Z.to("meta"), ValueError, "labels is on meta but start is on cpu"),
    ],
)
def test_bad_labels(labels, error, message):
    with fails(error, message):
        solve(Pushforward(lambda z, c, w: z, None, labels=labels), Z)


def test_labels_are_those_of_the_context(cloud, x):
    transport, labels, start = small_transport(dim_label=3), cloud(3, 5, 3), cloud(3, 5, 8)
    context = transport.encode(x)
    with fails(ValueError, "context must have labels in dimension 3, of TransportMap.labelled"):
        solve(Pushforward(transport, context, labels=labels), start)
    with fails(ValueError, "context must have labels in dimension 3, of TransportMap.labelled"):
        transport(start, context)
    context = transport.labelled(context, labels)
    with fails(ValueError, "labels must be those of the context, of shape (3, 5, 3), got None"):
        solve(Pushforward(transport, context), start)
    with fails(ValueError, "labels must be those of the context, of shape (3, 5, 3), got (3, 4, 3)"):
        solve(Pushforward(transport, context, labels=labels[:, :4]), start[:, :4])
    plain = small_transport()
    with fails(ValueError, "labels must be those of the context, of shape None, got (3, 5, 3)"):
        solve(Pushforward(plain, plain.encode(x), labels=labels), start)
    with fails(ValueError, "labels must be None: this network has dim_label = 0"):
        plain.labelled(plain.encode(x), labels)
    with fails(ValueError, "residual_space must be one of marginal, product; got 'all'"):
        Pushforward(plain, residual_space="all")
