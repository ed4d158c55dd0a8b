"""The bilevel gradient: equal to the pointwise one where particles are fixed, right where F permutes them."""

import re

import pytest
import torch

from ddeq_fast import Gaussian, InverseMultiquadric, Laplacian, Riesz
from ddeq_fast.gradients import ImplicitFunction
from ddeq_fast.gradients.bilevel import Bilevel
from ddeq_fast.models import DDEQ
from ddeq_fast.networks import TransportMap
from ddeq_fast.networks.attention import attend
from ddeq_fast.solvers import ConvergenceWarning, MMDFlow, Pushforward, solve


@pytest.fixture
def contraction(cloud):
    """(problem, equilibrium, parameters) of a contraction of 2 clouds of 4 points whose particles interact."""
    matrix, offset = (0.3 * cloud(2, 2)).requires_grad_(), cloud(2, 1, 2).requires_grad_()
    mixing, marks = 0.1 * cloud(4, 4), torch.linspace(-1, 1, 4).double()[:, None]

    def func(z, context, weights):
        return torch.tanh(z @ matrix + context[0] + mixing @ z + marks)

    problem = Pushforward(func, (offset,))
    return problem, solve(problem, cloud(2, 4, 2), "anderson", tol=1e-11).particles, (matrix, offset)


def gradients(backward, problem, z, parameters, target):
    tracked, info = backward.attach(problem, z)
    return torch.autograd.grad((tracked * target).sum(), parameters), tracked, info


@pytest.mark.parametrize("kernel", [None, Gaussian(0.7), InverseMultiquadric(1.0), 0.5 * Gaussian(0.3) + Gaussian(2.0)])
def test_agrees_with_the_pointwise_gradient_where_particles_are_fixed(contraction, kernel, cloud):
    problem, z, parameters = contraction
    target = cloud(2, 4, 2)
    exact, *_ = gradients(ImplicitFunction(method="gmres", max_steps=60, tol=1e-11), problem, z, parameters, target)
    found, tracked, info = gradients(Bilevel(kernel=kernel, tol=1e-10, max_steps=300), problem, z, parameters, target)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert torch.equal(tracked, z) and (info.residual <= 1e-10).all() and info.evaluations > 1


def swapping(shift, size, slope=2.0):
    """Points of a line to the other side of `shift`: {shift + p, shift - p} is fixed, p = size tanh(slope p)."""
    return lambda z, context, weights: shift - size * torch.tanh(slope * (z - shift))


def half_width(size, slope=2.0):
    p = torch.tensor(float(size), dtype=torch.float64)
    for _ in range(200):
        p = size * torch.tanh(slope * p)
    return p


def test_is_right_where_particles_are_swapped():
    """Only the cloud is fixed; pointwise differentiation gets the wrong answer, finite differences decide."""
    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    size = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    p = half_width(0.9)
    z = torch.stack((0.3 + p, 0.3 - p)).view(1, 2, 1)
    problem = Pushforward(swapping(shift, size))
    assert (problem.image(z).flip(1) - z).abs().max() < 1e-12
    change = float(half_width(0.9 + 1e-6) - half_width(0.9 - 1e-6)) / 2e-6
    target = torch.tensor([[[2.0], [-1.0]]], dtype=torch.float64)  # d loss / d size = 2 p' + p'
    (by_shift, by_size), _, info = gradients(
        Bilevel(kernel=Gaussian(0.5), tol=1e-12), problem, z, (shift, size), target
    )
    assert by_shift.item() == pytest.approx(1.0, rel=1e-9)
    assert by_size.item() == pytest.approx(3 * change, rel=1e-6)
    assert (info.residual <= 1e-12).all()
    wrong = gradients(ImplicitFunction(method="gmres", max_steps=10), problem, z, (shift, size), target)[0][1]
    assert abs(wrong.item() - 3 * change) > 1


def test_frozen_particles_and_padding_are_held(contraction, cloud):
    _, z, _ = contraction
    shift = cloud(2, 1, 2).requires_grad_()
    padded = torch.cat((z, torch.full((2, 1, 2), 50.0).double()), 1)
    weights = torch.tensor([[1.0, 1, 1, 1, 0]] * 2).double()
    frozen = torch.tensor([[True, False, False, False, False]] * 2)

    def func(cloud, context, weights):
        moved = 0.5 * cloud + 0.5 * padded + context[0] - context[0].detach()
        return torch.where(frozen[..., None], cloud, moved)

    problem = Pushforward(func, (shift,), weights, frozen)
    tracked, _ = Bilevel(kernel=Gaussian(1.0), tol=1e-10).attach(problem, padded)
    for particle, expected in ((0, 0.0), (1, 2.0), (3, 2.0), (4, 0.0)):  # dz = dshift / (1 - 1/2)
        (found,) = torch.autograd.grad(tracked[:, particle].sum(), shift, retain_graph=True)
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-6, atol=1e-8)


def test_a_layer_trains_by_it(cloud):
    torch.manual_seed(0)
    transport = TransportMap(8, 2, num_heads=2, dim_lift=(4, 4, 8), dim_hidden=8, dim_final=8).double()
    with torch.no_grad():  # contractive, so that there is an equilibrium to differentiate
        for name, parameter in transport.named_parameters():
            if "weight" in name and parameter.dim() > 1:
                parameter.mul_(0.5)
    flow = MMDFlow(kernel=Gaussian(2.0), lr=5.0, max_steps=5, tol=0.0)
    layer = DDEQ(transport, 3, solver=flow, backward=Bilevel(max_steps=200, tol=1e-3, damping=1e-6)).double()
    layer(cloud(2, 5, 2)).particles.square().sum().backward()
    for name, parameter in transport.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_samples_above_the_tolerance_are_told_of(contraction, cloud):
    problem, z, parameters = contraction
    with pytest.warns(ConvergenceWarning, match=r"^backward: 2 of 2 samples ended above a residual of 1e-10"):
        gradients(Bilevel(kernel=Gaussian(1.0), max_steps=1, tol=1e-10), problem, z, parameters, cloud(2, 4, 2))


@pytest.mark.parametrize("seed", range(3))
def test_coincident_particles_are_told_of(seed):
    """Their spread is rounding, and no width to take for the kernel's: gradients of noise would converge."""
    shift, draw = torch.tensor([[[1.0, -2.0]]]).double().requires_grad_(), torch.Generator().manual_seed(seed)
    problem = Pushforward(lambda z, context, weights: 0.5 * z + context, shift)
    z = 2 * shift.detach() * (1 + 3e-16 * torch.randn(1, 4, 2, generator=draw).double())
    target = torch.randn(1, 4, 2, generator=draw).double()
    with pytest.warns(ConvergenceWarning, match=r"^backward: 1 of 1 samples ended above"):
        gradients(Bilevel(), problem, z, (shift,), target)


@pytest.mark.parametrize("far", [0.0, 1e30])
def test_far_padding_does_not_set_the_width_of_the_kernel(contraction, cloud, far):
    problem, z, parameters = contraction
    target = cloud(2, 4, 2)
    expected, *_ = gradients(Bilevel(tol=1e-10, max_steps=300), problem, z, parameters, target)
    weights = torch.tensor([[1.0, 1, 1, 1, 0]] * 2).double()

    def func(cloud, context, weights):
        return torch.cat((problem.func(cloud[:, :4], context, None), cloud[:, 4:]), 1)

    padded, more = (torch.nn.functional.pad(t, (0, 0, 0, 1), value=v) for t, v in ((z, far), (target, 0.0)))
    found, *_ = gradients(
        Bilevel(tol=1e-10, max_steps=300), Pushforward(func, problem.context, weights), padded, parameters, more
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_attention_that_cannot_be_differentiated_twice_is_an_error(cloud):
    """PyTorch's own, where it takes a fused kernel; the attention here does without one when asked to."""
    z, scale = cloud(2, 6, 4), torch.tensor(0.5).double().requires_grad_()

    def of(attention):
        def func(z, context, weights):
            q = scale * z[:, None]
            return attention(q, q, q, None)[:, 0]

        return gradients(Bilevel(kernel=Gaussian(1.0), max_steps=5, tol=1.0), Pushforward(func), z, (scale,), z)[0]

    with pytest.raises(
        RuntimeError, match=r"func must be twice differentiable, .*: for attention, take networks\.attention\.attend"
    ):
        of(lambda q, k, v, bias: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert of(attend)[0].isfinite()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel": Riesz(1.0)}, ValueError, "kernel must be smooth where points coincide, got Riesz(r=1.0)"),
        ({"kernel": Laplacian(2.0)}, ValueError, "kernel must be smooth where points coincide, got Laplacian"),
        ({"kernel": "gaussian"}, TypeError, "kernel must be a RadialKernel such as Gaussian(1.0), got str"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        ({"tol": 0.0}, ValueError, "tol must lie in (0, inf), got 0.0"),
        ({"damping": -1.0}, ValueError, "damping must lie in [0, inf), got -1.0"),
        ({"backend": 3}, TypeError, "backend must be a string, got int"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        Bilevel(**options)


@pytest.mark.parametrize("sigma", [1e-9, 1e9])
def test_smoothness_is_no_matter_of_scale(sigma):
    assert Bilevel(kernel=Gaussian(sigma) + 0.5 * Gaussian(3 * sigma)).kernel is not None
    for kernel in (Laplacian(sigma), Gaussian(sigma) + 1e-6 * Riesz(1.9)):
        with pytest.raises(ValueError, match=r"^kernel must be smooth where points coincide, got "):
            Bilevel(kernel=kernel)
