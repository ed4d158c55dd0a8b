"""Backward passes against unrolled differentiation: values, cost, reports, and bad options."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from torch.autograd import gradcheck

from ddeq_fast import gradients as backwards
from ddeq_fast.gradients import ImplicitFunction, Phantom
from ddeq_fast.models import DDEQ
from ddeq_fast.solvers import Anderson, ConvergenceWarning, MMDFlow, Pushforward
from problems import Recorder, affine, affine_context, close, fails, small_transport

METHODS = ["fixed_point", "anderson", "gmres"]
every_method = pytest.mark.parametrize("method", METHODS)


class Contraction(torch.nn.Module):
    """tanh(z A + mean(z) B + x) / 2, whose particles interact."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.own, self.others = (
            torch.nn.Parameter(0.4 * torch.randn(3, 3, generator=generator).double()) for _ in range(2)
        )

    def forward(self, z, context, weights):
        return (z @ self.own + z.mean(1, keepdim=True) @ self.others + context[0]).tanh() / 2


def solved(problem, z, steps=200):
    """z after plain iteration, without a graph; frozen particles stay."""
    with torch.no_grad():
        for _ in range(steps):
            z = held(problem, z)
    return z


def held(problem, z):
    y = problem.image(z)
    return y if problem.frozen is None else torch.where(problem.frozen[..., None], z, y)


@pytest.fixture
def contraction(cloud):
    """(map, input, start, weights of a loss)."""
    return Contraction(), cloud(2, 4, 3, grad=True), cloud(2, 4, 3), cloud(2, 4, 3)


@pytest.fixture
def network(cloud):
    """The same with a transport map, whose context depends on its input x."""
    transport = small_transport()
    x = cloud(2, 5, 2, grad=True)
    return transport, x, cloud(2, 4, 8), cloud(2, 4, 8)


def gradients(particles, probe, func, x):
    """Derivatives of a sum of the particles with respect to the input and all parameters."""
    return torch.autograd.grad((particles * probe).sum() + particles.square().sum(), (x, *func.parameters()))


def assert_same(found, expected, tolerance):
    assert all(close(ours, theirs, tolerance) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("method", ["fixed_point", "anderson"])
def test_the_implicit_gradient_of_a_sample_is_that_of_the_sample_alone(contraction, method):
    """Though the second sample, of a steeper map, takes more products."""
    func, x, start, probe = contraction
    backward = ImplicitFunction(method=method, tol=1e-3)

    def gradient(rows):
        slopes = torch.tensor([0.1, 1.6], dtype=x.dtype)[rows, None, None]
        problem = Pushforward(lambda z, context, weights: slopes * func(z, context, weights), (x[rows],))
        particles, info = backward.attach(problem, start[rows])
        return torch.autograd.grad((particles * probe[rows]).sum(), x)[0][rows], info.evaluations

    (together, most), (alone, fewer) = gradient([0, 1]), gradient([0])
    assert fewer < most
    assert close(together[:1], alone, 1e-12)


@every_method
@pytest.mark.parametrize("hold", [False, True], ids=["free", "frozen"])
def test_implicit_gradient_is_that_of_the_unrolled_iteration(contraction, method, hold):
    func, x, start, probe = contraction
    frozen = torch.tensor([[True, False, False, False]] * 2) if hold else None
    problem = Pushforward(func, (x,), frozen=frozen)
    z = solved(problem, start)
    unrolled = z
    for _ in range(100):
        unrolled = held(problem, unrolled)
    particles, info = ImplicitFunction(method=method, max_steps=100, tol=1e-11).attach(problem, z)
    assert close(particles.detach(), z, 1e-12)
    assert_same(gradients(particles, probe, func, x), gradients(unrolled, probe, func, x), 1e-9)
    assert (info.residual <= 1e-11).all() and 0 < info.evaluations <= 100


@every_method
def test_implicit_gradient_through_a_transport_map(network, method):
    transport, x, start, probe = network
    problem = Pushforward(transport, transport.encode(x))
    z = solved(problem, start)
    unrolled = z
    for _ in range(60):
        unrolled = problem.image(unrolled)
    expected = gradients(unrolled, probe, transport, x)
    problem = Pushforward(transport, transport.encode(x))
    particles, _ = ImplicitFunction(method=method, max_steps=100, tol=1e-10).attach(problem, z)
    assert_same(gradients(particles, probe, transport, x), expected, 1e-7)


def test_phantom_gradient_is_not_the_implicit_one(contraction):
    func, x, start, probe = contraction
    problem = Pushforward(func, (x,))
    z = solved(problem, start)
    implicit_one = gradients(ImplicitFunction().attach(problem, z)[0], probe, func, x)
    phantom, tenfold = (gradients(Phantom(steps=k).attach(problem, z)[0], probe, func, x) for k in (1, 40))
    assert not close(phantom[0], implicit_one[0], 1e-2)
    assert_same(tenfold, implicit_one, 1e-4)


@pytest.mark.parametrize("damping", [1.0, 0.3])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("hold", [False, True], ids=["free", "frozen"])
def test_phantom_unrolls_damped_steps(contraction, steps, damping, hold):
    func, x, z, probe = contraction
    frozen = torch.tensor([[True, False, False, False]] * 2) if hold else None
    problem = Pushforward(func, (x,), frozen=frozen)
    expected = z
    for _ in range(steps):
        expected = (1 - damping) * expected + damping * held(problem, expected)
    particles, info = Phantom(steps=steps, damping=damping).attach(problem, z)
    assert close(particles, expected) and info.evaluations == steps
    assert_same(gradients(particles, probe, func, x), gradients(expected, probe, func, x), 1e-12)


@pytest.mark.parametrize(
    "backward", [Phantom(steps=2), *(ImplicitFunction(method=name) for name in METHODS)], ids=["phantom", *METHODS]
)
def test_no_gradient_reaches_the_solution_handed_in(contraction, backward):
    func, x, z, probe = contraction
    z = z.requires_grad_()
    particles, _ = backward.attach(Pushforward(func, (x,)), z)
    assert torch.autograd.grad((particles * probe).sum(), z, allow_unused=True) == (None,)


def offset_problem(rates, cloud):
    """z -> z A + b with an offset for every particle, so that its gradient is the solution g itself."""
    offset = cloud(len(rates), 4, 3, grad=True)
    matrix = affine_context(rates)[0]
    return Pushforward(lambda z, context, weights: z @ context[0] + context[1], (matrix, offset)), matrix, offset


@every_method
@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_reported_residual_is_that_of_the_linear_system(cloud, method, max_steps):
    """g = g0 + J^T g, of which `max_steps` products do not suffice."""
    problem, matrix, offset = offset_problem([0.3, 0.8], cloud)
    particles, info = ImplicitFunction(method=method, max_steps=max_steps).attach(problem, cloud(2, 4, 3))
    g0 = cloud(2, 4, 3)
    with pytest.warns(ConvergenceWarning, match=r"^backward: 2 of 2 samples ended above a residual of 1e-05 \(worst 0"):
        (g,) = torch.autograd.grad((particles * g0).sum(), offset)
    norms = [torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (g0 + g @ matrix.mT - g, g0)]
    assert close(info.residual, norms[0] / norms[1], 1e-10)
    assert info.evaluations <= max_steps


@every_method
def test_samples_are_solved_independently(cloud, method):
    """One hard sample, and one whose gradient vanishes, do not disturb the others."""
    problem, _, offset = offset_problem([0.2, 0.999, 0.5], cloud)
    particles, info = ImplicitFunction(method=method, max_steps=20, tol=1e-9).attach(problem, cloud(3, 4, 3))
    g0 = cloud(3, 4, 3)
    g0[2] = 0
    hard = pytest.warns(ConvergenceWarning, match="1 of 3 samples") if method == "fixed_point" else nullcontext()
    with hard:
        (g,) = torch.autograd.grad((particles * g0).sum(), offset)
    assert info.residual[0] <= 1e-9 and info.residual[2] == 0 and not g[2].any()
    expected = torch.linalg.solve(torch.eye(3).double() - problem.context[0][0], g0[0].mT).mT
    assert close(g[0], expected, 1e-8)


@pytest.mark.parametrize("method", ["anderson", "gmres"])
def test_systems_that_do_not_contract(cloud, method):
    """Eigenvalues of J of 3 and 10: the plain iteration diverges."""
    problem, matrix, offset = offset_problem([3.0, 10.0], cloud)
    g0 = cloud(2, 4, 3)
    particles, _ = ImplicitFunction(method=method, max_steps=40, tol=1e-9).attach(problem, cloud(2, 4, 3))
    (g,) = torch.autograd.grad((particles * g0).sum(), offset)
    assert close(g, torch.linalg.solve(torch.eye(3).double() - matrix, g0.mT).mT, 1e-7)


def test_diverging_iteration_keeps_its_best(cloud):
    """Which is the start g0, the gradient of one tracked evaluation."""
    problem, matrix, offset = offset_problem([3.0, 10.0], cloud)
    g0 = cloud(2, 4, 3)
    particles, info = ImplicitFunction(method="fixed_point").attach(problem, cloud(2, 4, 3))
    with pytest.warns(ConvergenceWarning, match="backward: 2 of 2 samples"):
        (g,) = torch.autograd.grad((particles * g0).sum(), offset)
    norms = [torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (g0 @ matrix, g0)]
    assert torch.equal(g, g0) and close(info.residual, norms[0] / norms[1])


@every_method
def test_float32(cloud, method):
    transport, z = small_transport(dtype=torch.float32), cloud(2, 4, 8, dtype=torch.float32)
    problem = Pushforward(transport, transport.encode(cloud(2, 5, 2, dtype=torch.float32)))
    particles, info = ImplicitFunction(method=method).attach(problem, solved(problem, z))
    (particles * z).sum().backward()
    assert info.residual.dtype == torch.float64 and (info.residual <= 1e-5).all()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in transport.parameters())


@every_method
def test_a_map_that_ignores_the_cloud_has_the_plain_gradient(cloud, method):
    target, g0 = cloud(2, 4, 3, grad=True), cloud(2, 4, 3)
    problem = Pushforward(lambda z, context, weights: 2 * context[0], (target,))
    particles, info = ImplicitFunction(method=method).attach(problem, cloud(2, 4, 3))
    assert close(torch.autograd.grad((particles * g0).sum(), target)[0], 2 * g0)
    assert info.residual.tolist() == [0.0, 0.0]


@every_method
def test_nothing_to_differentiate(cloud, method):
    particles, info = ImplicitFunction(method=method).attach(Pushforward(affine, affine_context([0.5])), cloud(1, 4, 3))
    assert not particles.requires_grad and info.evaluations == 0 and info.residual is None


@pytest.mark.parametrize("backward", [Phantom(), ImplicitFunction()], ids=["phantom", "ift"])
@pytest.mark.parametrize("solver", [MMDFlow, Anderson])
def test_memory_does_not_depend_on_the_forward_steps(cloud, backward, solver):
    """Tensors held for the backward pass: as many after two steps as after twelve."""
    x = cloud(2, 5, 2)

    def held_tensors(steps):
        alive = weakref.WeakSet()

        class Saved:
            def __init__(self, tensor):
                self.tensor = tensor.detach()
                alive.add(self)

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            layer = DDEQ(small_transport(), 4, solver=solver(max_steps=steps, tol=0.0), backward=backward).double()
            particles = layer(x).particles
            count = len(alive)
        assert particles.requires_grad
        return count

    assert held_tensors(2) == held_tensors(12) > 0


@pytest.mark.parametrize("steps", [1, 3])
def test_evaluations_with_a_graph(contraction, steps):
    """As many as phantom steps; one for the implicit function, and one more when its gradient arrives."""
    func, x, z, probe = contraction
    recorder = Recorder(func)
    Phantom(steps=steps).attach(Pushforward(recorder, (x,)), z)
    assert recorder.tracked == steps
    recorder = Recorder(func)
    particles, info = ImplicitFunction(method="fixed_point", tol=1e-3).attach(Pushforward(recorder, (x,)), z)
    assert recorder.tracked == 1
    (particles * probe).sum().backward()
    assert recorder.tracked == 2 and info.evaluations > 2


@every_method
def test_gradcheck_through_a_layer(cloud, method):
    """Central differences of the equilibrium itself, found to rounding."""
    transport = small_transport(dim_lift=(2, 3, 3), dim_hidden=4, dim_final=4, cross_layers=1)
    backward = ImplicitFunction(method=method, max_steps=100, tol=1e-10)
    layer = DDEQ(transport, 2, solver=Anderson(tol=1e-6, max_steps=100), backward=backward).double()
    x, names = cloud(1, 3, 2, grad=True), ("bilinear.alpha", "cross_encoder.0.project_in.bias", "final.linear2.weight")
    parameters = [transport.get_parameter(name) for name in names]
    assert gradcheck(lambda x, *_: layer(x).particles, (x, *parameters), eps=1e-5, atol=1e-6, fast_mode=True)


UNKNOWN_METHOD = "method must be one of anderson, fixed_point, gmres; got 'newton'"


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (Phantom, {"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        (Phantom, {"steps": 1.0}, TypeError, "steps must be an integer, got float"),
        (Phantom, {"damping": 0.0}, ValueError, "damping must lie in (0, 1], got 0.0"),
        (Phantom, {"damping": 1.5}, ValueError, "damping must lie in (0, 1], got 1.5"),
        (ImplicitFunction, {"method": "newton"}, ValueError, UNKNOWN_METHOD),
        (ImplicitFunction, {"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        (ImplicitFunction, {"tol": 0.0}, ValueError, "tol must lie in (0, inf), got 0.0"),
        (ImplicitFunction, {"depth": 1}, ValueError, "depth must be at least 2, got 1"),
        (ImplicitFunction, {"depth": 1001}, ValueError, "depth must be at most 1000, got 1001"),
        (
            backwards.make,
            {"backward": "exact"},
            ValueError,
            "backward must be one of bilevel, ift, phantom; got 'exact'",
        ),
        (backwards.make, {"backward": 1}, TypeError, "backward must be a name or a Backward, got int"),
        (
            backwards.make,
            {"backward": Phantom},
            TypeError,
            "backward must be a name or a Backward, got the class Phantom",
        ),
    ],
)
def test_bad_options(make, options, error, message):
    with fails(error, message):
        make(**options)
