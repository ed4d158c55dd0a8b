"""The examples of CONTRIBUTING.md: each adds something from outside the package, which then works by its name."""

import pages
import pytest
import torch

from ddeq_fast import DDEQ, Pushforward, solve, solvers, squared_mmd
from ddeq_fast.sums import radial, text
from ddeq_fast.training import Config, load_data, make_model, tasks
from problems import affine, affine_context, affine_solution, close, small_transport

PAGE = "CONTRIBUTING.md"
pytestmark = pytest.mark.usefixtures("registries")


def example(title):
    """The names that the code under this title makes."""
    section = pages.text_of(PAGE).split(f"\n## {title}\n")[1].split("\n## ")[0]
    (code,) = pages.blocks(section)
    return pages.run(code, f"{PAGE}: {title}")


def test_a_kernel(cloud):
    made = example("A kernel")["Cauchy"]
    x, y = cloud(5, 3, grad=True), cloud(4, 3)
    kernel = made(2.0)
    assert text.parse("cauchy:2") == kernel and "cauchy" in radial.names()

    def mean(a, b):
        return (1 / (1 + (a[:, None] - b).square().sum(-1) / 4)).mean()

    expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    found = squared_mmd(x, y, kernel)
    assert close(found, expected)
    assert close(*(torch.autograd.grad(value, x)[0] for value in (found, expected)))
    assert torch.autograd.gradgradcheck(lambda z: squared_mmd(z, y, kernel), x)


def test_a_backend(cloud, kernel):
    example("A backend")
    x, y = cloud(2, 5, 3, grad=True), cloud(2, 4, 3)
    found, expected = (squared_mmd(x, y, kernel, backend=name) for name in ("naive", "dense"))
    assert close(found, expected)
    assert close(*(torch.autograd.grad(value.sum(), x)[0] for value in (found, expected)))
    assert torch.autograd.gradgradcheck(lambda z: squared_mmd(z, y, kernel, backend="naive").sum(), x)


def test_a_solver(cloud):
    example("A solver")
    context = affine_context([0.2, 0.4, 0.6])
    particles, info = solve(Pushforward(affine, context), cloud(3, 4, 3), "picard", tol=1e-6)
    assert info.converged.all() and "picard" in solvers.names()
    assert close(particles, affine_solution(context)[:, None].expand(3, 4, 3), 1e-4)


def test_a_gradient(cloud):
    example("A gradient")
    transport, x = small_transport(), cloud(3, 6, 2)
    found = []
    for backward in ("one-step", "phantom"):  # the latter takes one step by default
        layer = DDEQ(transport, 4, backward=backward).double()
        assert ("OneStep()" in repr(layer)) == (backward == "one-step")
        particles = layer(x).particles
        found.append(torch.autograd.grad(particles.square().sum(), transport.bilinear.alpha)[0])
    assert close(*found)


def test_a_data_set_and_a_training_task():
    example("A data set")
    made = example("A training task")["SpreadTask"]
    config = Config(data="rings", dim_z=8, num_heads=2, dim_hidden=8, dim_lift=4, particles=3)
    rings = load_data(config)
    torch.manual_seed(0)
    model, task = make_model(config, rings.dim, 1), made(config)
    assert tasks.TASKS["spread"] is made
    inputs = task.inputs(rings.train.batch(torch.arange(16)), 0)
    adam = torch.optim.Adam(model.parameters(), 3e-2)
    losses = []
    for _ in range(40):
        loss, _ = task.loss(task.run(model, inputs), inputs)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert set(task.metrics(task.run(model, inputs), inputs)) == set(task.reported)
