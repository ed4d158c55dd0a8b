"""On a GPU: CUDA-graph capture of sums and of whole flow steps, compiled code, the layer."""

import pytest
import torch

from ddeq_fast import Riesz, potential_and_field, squared_mmd
from ddeq_fast.models import DDEQ
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import MMDFlow, Pushforward

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def layer():
    """A small layer and its input clouds, in float64 on the CPU."""
    torch.manual_seed(0)
    transport = TransportMap(16, 2, heads=4, dim_lift=(8, 8, 16), dim_hidden=32, dim_final=32).double()
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


def test_a_flow_step_is_captured(layer):
    model, x = layer
    model, x = model.cuda(), x.cuda()
    with torch.no_grad():
        problem = Pushforward(model.transport, model.transport.encode(x))
        z, flow = model.start.expand(4, -1, -1).clone(), MMDFlow(lr=0.2)

        def step():
            y, vjp = problem.linearise(z)
            return (flow.step(problem, z, y, vjp, flow.init(problem, z, y), 0)[0],)

        expected = step()[0].clone()
        torch.testing.assert_close(replayed(step)[0], expected, rtol=1e-9, atol=1e-9)


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
