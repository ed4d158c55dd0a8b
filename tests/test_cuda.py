"""On a GPU: CUDA-graph capture of sums and of whole flow steps, compiled code, the layer."""

import pytest
import torch

from ddeq_fast import Riesz, potential_and_field, squared_mmd
from ddeq_fast.models import DDEQ
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import SGD, Anderson, Auto, MMDFlow, Pushforward

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def layer():
    """A small layer and its input clouds, in float64 on the CPU."""
    torch.manual_seed(0)
    transport = TransportMap(16, 2, num_heads=4, dim_lift=(8, 8, 16), dim_hidden=32, dim_final=32).double()
    return DDEQ(transport, 5, solver=MMDFlow(lr=0.2, max_steps=20, tol=0.0)).double(), torch.randn(4, 30, 2).double()


def replayed(work):
    """What `work` returns when it is captured in a CUDA graph and replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    for result in results:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return results


@pytest.mark.parametrize("d", [3, 128])
def test_sums_are_captured(d, cloud):
    x, y = cloud(4, 10, d, dtype=torch.float32).cuda(), cloud(4, 12, d, dtype=torch.float32).cuda()
    expected = potential_and_field(x, y)
    torch.testing.assert_close(replayed(lambda: potential_and_field(x, y)), expected, rtol=1e-6, atol=1e-6)


def test_mmd_and_its_gradients_are_captured(cloud):
    x = cloud(4, 10, 16, dtype=torch.float32).cuda().requires_grad_()
    y = cloud(4, 10, 16, dtype=torch.float32).cuda().requires_grad_()

    def work():
        value = squared_mmd(x, y)
        return value.detach(), *torch.autograd.grad(value.sum(), (x, y))

    expected = [tensor.clone() for tensor in work()]
    torch.testing.assert_close(list(replayed(work)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", [MMDFlow(lr=0.2), Anderson(depth=3)], ids=["flow", "anderson"])
def test_steps_are_captured(layer, solver):
    """Evaluation of F, its derivative, and three steps one after another in one graph."""
    model, x = layer
    model, x = model.cuda(), x.cuda()
    with torch.no_grad():
        problem = Pushforward(model.transport, model.transport.encode(x))
        z0 = model.start.expand(4, -1, -1).clone()

        def steps():
            z, state = z0, None
            for step in range(3):
                y, vjp = problem.linearise(z) if solver.needs_vjp else (problem.image(z), None)
                state = solver.init(problem, z, y) if state is None else state
                z, state, _ = solver.step(problem, z, y, vjp, state, step)
            return (z,)

        expected = steps()[0].clone()
        torch.testing.assert_close(replayed(steps)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "solver",
    [
        lambda **options: MMDFlow(lr=0.2, optimizer=SGD(0.5), max_steps=20, check_every=4, **options),
        lambda **options: Anderson(depth=3, max_steps=12, **options),
        lambda **options: Auto(tol=1e-6, anderson={"max_steps": 8}, flow={"max_steps": 20}, **options),
    ],
    ids=["flow", "anderson", "auto"],
)
def test_recorded_solves(layer, solver):
    """One recording for clouds that change from solve to solve, and weights that change in place."""
    model, x = layer
    model, x = model.cuda(), x.cuda()
    recorded, start = solver(cuda_graph=True), model.start.expand(4, -1, -1).clone()
    for scale in (1.0, 0.5):
        with torch.no_grad():
            model.transport.norm_start.weight.mul_(scale)
            problem = Pushforward(model.transport, model.transport.encode(scale * x))
            found, expected = recorded.solve(problem, start), solver().solve(problem, start)
        torch.testing.assert_close(found.particles, expected.particles, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.info.residual, expected.info.residual, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("solver", [MMDFlow(lr=0.2, check_every=8), Anderson(check_every=8)], ids=["flow", "anderson"])
def test_the_host_waits_at_checks_only(layer, solver):
    model, x = layer
    model, x = model.cuda(), x.cuda()
    waits = []

    def func(z, context, weights):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default" if len(waits) % 8 == 0 else "error")
        waits.append(mode)
        return model.transport(z, context, weights)

    solver.max_steps, solver.tol = 8, 0.0
    with torch.no_grad():
        context = model.transport.encode(x)
        try:
            solver.solve(Pushforward(func, context), model.start.expand(4, -1, -1).clone())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 9


def test_compiled_without_graph_breaks(cloud):
    def loss(x, y):
        return squared_mmd(x, y, Riesz(1.0)).sum()

    x, y = cloud(4, 10, 3, dtype=torch.float32).cuda().requires_grad_(), cloud(4, 12, 3, dtype=torch.float32).cuda()
    (expected,) = torch.autograd.grad(loss(x, y), x)
    (found,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x, y), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_layer_agrees_with_the_cpu(layer):
    model, x = layer
    expected = model(x).particles.detach()
    found = model.cuda()(x.cuda()).particles.detach().cpu()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
