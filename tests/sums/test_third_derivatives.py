"""Third derivatives of the sums: those of the plain formula, in tiles, in every range and precision."""

import pytest
import torch
from sample_kernels import KERNELS, Rational

from ddeq_fast import Gaussian, Riesz, field, squared_mmd
from ddeq_fast.sums import backends, naive, third
from ddeq_fast.sums.operators import tangent


@pytest.fixture(params=[None, "20K"], ids=["one tile", "many tiles"])
def budget(request):
    backends.set_memory_budget(request.param)
    yield request.param
    backends.set_memory_budget(None)


def pulled(function, tensors, pulls):
    """Gradients of <function(...), pulls> in all tensors."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    total = sum((pull * value).sum() for pull, value in zip(pulls, function(*tensors), strict=True))
    return torch.autograd.grad(total, tensors)


@pytest.mark.parametrize("name", [*KERNELS, "own"])
def test_they_are_those_of_the_formula(cloud, budget, name):
    kernel = KERNELS.get(name) or Rational()
    x, y, s, t = (cloud(2, n, 3) for n in (21, 17, 21, 17))
    v, g, h = cloud(34).view(2, 17), cloud(42).view(2, 21), cloud(2, 21, 3)
    y[:, :3] = x[:, 4:7]
    found = pulled(lambda *args: tangent(*args, kernel, "dense"), (x, y, v, s, t), (g, h))
    expected = pulled(lambda *args: naive.tangent(*args, kernel), (x, y, v, s, t), (g, h))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("d", [2, 20])
def test_they_are_those_of_the_hessian(cloud, budget, d):
    """By double backward of a second derivative, in sources and targets that are one cloud."""
    x, kernel = cloud(13, d, grad=True), Gaussian(1.1)

    def third_of(energy):
        (first,) = torch.autograd.grad(energy, x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(second.square().sum(), x)[0]

    y = cloud(11, d) + 0.3
    q = [(a[:, None] - b).square().sum(-1) for a, b in ((x, x), (x, y), (y, y))]
    plain = [kernel.k(one).mean() for one in q]
    torch.testing.assert_close(third_of(squared_mmd(x, y, kernel)), third_of(plain[0] - 2 * plain[1] + plain[2]))


def test_forward_over_backward_over_forward(cloud, budget):
    x, y, move = cloud(9, 3), cloud(14, 3), cloud(9, 3)

    def along(backend):
        def second(x):
            slope = torch.func.grad(lambda x: backend(x).square().sum())
            return torch.func.jvp(slope, (x,), (move,))[1]

        return torch.func.jvp(second, (x,), (move,))[1]

    plain = along(lambda x: naive.evaluate(x[None], y[None], torch.ones_like(y[None, :, 0]), Riesz(1.0))[1])
    torch.testing.assert_close(along(lambda x: field(x, y, Riesz(1.0))), plain)


def test_no_tile_is_larger_than_the_budget(cloud, monkeypatch):
    seen, formula = [], naive.tangent

    def watched(x, y, *rest):
        seen.append(len(x) * x.shape[1] * y.shape[1])
        return formula(x, y, *rest)

    monkeypatch.setattr(naive, "tangent", watched)
    x, y, s, t = (cloud(2, n, 12) for n in (90, 70, 90, 70))
    backends.set_memory_budget("1M")
    try:
        pulled(lambda *args: tangent(*args, Riesz(1.5), "dense"), (x, y, y[..., 0], s, t), (1.0, 1.0))
    finally:
        backends.set_memory_budget(None)
    assert max(seen) * third.pair_bytes(12, 8) <= 1 << 20 < sum(seen) * third.pair_bytes(12, 8)


def test_coordinates_that_single_precision_does_not_square(cloud):
    x, y, s, t = (cloud(1, n, 3) for n in (5, 6, 5, 6))
    v, pulls = cloud(6)[None], (cloud(5)[None], cloud(1, 5, 3))
    scales = [1e22, 1e22, 1.0, 1.0, 1.0]
    wide = [tensor * scale for tensor, scale in zip((x, y, v, s, t), scales, strict=True)]
    expected = pulled(lambda *args: naive.tangent(*args, Riesz(1.0)), wide, pulls)
    single = [tensor.float() for tensor in wide]
    found = pulled(lambda *args: tangent(*args, Riesz(1.0), "dense"), single, [pull.float() for pull in pulls])
    for a, b, scale in zip(found, expected, scales, strict=True):
        torch.testing.assert_close(a.double() * scale, b * scale, rtol=1e-4, atol=1e-4 * float((b * scale).abs().max()))


def test_half_precision_is_summed_in_single(cloud):
    inputs = [tensor.half() for tensor in (cloud(1, 60, 3), cloud(1, 300, 3), cloud(300)[None])]
    inputs += [tensor.half() for tensor in (cloud(1, 60, 3), cloud(1, 300, 3))]
    pulls = torch.ones(1, 60).half(), cloud(1, 60, 3).half()
    found = pulled(lambda *args: tangent(*args, Gaussian(1.0), "dense"), inputs, pulls)
    wide = [tensor.double() for tensor in inputs]
    expected = pulled(lambda *args: naive.tangent(*args, Gaussian(1.0)), wide, [pull.double() for pull in pulls])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float16 and (a.double() - b).norm() <= 1e-3 * b.norm()
