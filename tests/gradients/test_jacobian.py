"""How contractive F is, in random directions and in the one that a solve has left over; as a penalty."""

import pytest
import torch
from torch.autograd import gradcheck

from ddeq_fast.gradients import jacobian_norm, residual_direction
from ddeq_fast.solvers import Pushforward
from problems import affine, affine_context, fails


class Coupled(torch.nn.Module):
    """tanh(z A + mean(z) / 4 + x) / 2."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.own = torch.nn.Parameter(0.4 * torch.randn(3, 3, generator=generator).double())

    def forward(self, z, context, weights):
        return (z @ self.own + z.mean(1, keepdim=True) / 4 + context[0]).tanh() / 2


@pytest.fixture
def contraction(cloud):
    """(map, input, cloud)."""
    return Coupled(), cloud(2, 4, 3, grad=True), cloud(2, 4, 3)


def test_jacobian_norm_is_the_mean_squared_singular_value(cloud):
    """Of an affine map, over many draws: |A|_F^2 / d."""
    matrix, offset = affine_context([0.3, 2.0])
    draws = 4000
    context = matrix.repeat_interleave(draws, 0), offset.repeat_interleave(draws, 0)
    torch.manual_seed(0)
    found = jacobian_norm(Pushforward(affine, context), cloud(2 * draws, 4, 3)).view(2, draws)
    expected = matrix.square().sum((1, 2)) / 3
    # The relative standard deviation of one draw is below the root of 2 / 4, that of the mean below 0.012.
    assert torch.allclose(found.mean(1), expected, rtol=0.05)
    assert found[0].std() > 0


def test_jacobian_norm_holds_padding_and_frozen_particles(cloud):
    """Only particles 1 and 2 are displaced, and only their images are looked at."""
    z, seen = cloud(2, 4, 3), []
    weights = torch.tensor([[1.0, 1.0, 2.0, 0.0]] * 2).double()
    frozen = torch.tensor([[True, False, False, False]] * 2)

    def func(z, context, weights):
        seen.append(z)
        return 3 * z + torch.tensor([5.0, 0.0, 0.0, 5.0]).double()[:, None] * z.sum(1, keepdim=True)

    found = jacobian_norm(Pushforward(func, (), weights, frozen), z, step=0.1)
    (displaced,) = [points for points in seen if not torch.equal(points, z)]
    direction = (displaced - z) / 0.1
    assert not direction[:, [0, 3]].any() and direction[:, 1:3].all()
    assert torch.allclose(found, 9 * direction.square().sum((1, 2)) / 6)


def test_jacobian_norm_can_be_a_penalty(contraction):
    """Its gradient is that of the finite difference it is, and descent along it shrinks the norm."""
    func, x, z = contraction
    problem = Pushforward(func, (x,))

    def penalty():
        torch.manual_seed(0)
        return jacobian_norm(problem, z).sum()

    assert gradcheck(lambda *_: penalty(), (x, *func.parameters()))
    before = penalty()
    before.backward()
    with torch.no_grad():
        for p in func.parameters():
            p -= 0.5 * p.grad
    assert 0 < penalty() < before


def test_jacobian_norm_needs_a_step(contraction):
    func, x, z = contraction
    with fails(ValueError, "step must lie in (0, inf), got 0.0"):
        jacobian_norm(Pushforward(func, (x,)), z, step=0.0)
    with fails(TypeError, "problem must be a Pushforward, got Coupled"):
        jacobian_norm(func, z)
    with fails(ValueError, "z must be finite, got 24 NaN or infinite values of 24"):
        jacobian_norm(Pushforward(func, (x,)), z / 0)
    with fails(ValueError, "direction must have shape (2, 4, 3), got (2, 3, 3)"):
        jacobian_norm(Pushforward(func, (x,)), z, direction=z[:, :3])


def diagonal(z, context, weights):
    """Each coordinate shrinks by a factor of its own."""
    return z * torch.tensor([0.9, 0.1, 0.05]).to(z)


def test_residual_is_the_direction_of_the_slowest_mode(cloud):
    """After a few evaluations what is left lies along it, and the norm there is its squared factor."""
    z, problem = cloud(2, 4, 3), Pushforward(diagonal, None)
    for _ in range(8):
        z = problem.image(z)
    direction = residual_direction(problem, z)
    assert torch.allclose(direction.square().mean((1, 2)), torch.ones(2).double())
    assert float(direction[..., 1:].abs().max()) < 1e-5
    assert torch.allclose(jacobian_norm(problem, z, direction=direction), torch.tensor(0.81).double())
    known = residual_direction(problem, z, problem.image(z).requires_grad_())
    assert torch.equal(known, direction) and not known.requires_grad


def test_residual_direction_of_what_moves_alone(cloud):
    weights = torch.tensor([[1.0, 1.0, 2.0, 0.0]] * 2).double()
    frozen = torch.tensor([[True, False, False, False]] * 2)
    direction = residual_direction(Pushforward(diagonal, None, weights, frozen), cloud(2, 4, 3))
    assert not direction[:, [0, 3]].any()
    assert torch.allclose(direction[:, 1:3].square().mean((1, 2)), torch.ones(2).double())


def test_residual_direction_at_a_fixed_point_is_zero(cloud):
    """And the penalty with its gradient too, not NaN."""
    func, x, z = Coupled(), cloud(1, 4, 3, grad=True), torch.zeros(1, 4, 3).double()
    problem = Pushforward(lambda z, context, weights: func(z, context, weights) * context[0].mean() * 0, (x,))
    direction = residual_direction(problem, z)
    assert not direction.any()
    norm = jacobian_norm(problem, z, direction=direction).sum()
    norm.backward()
    assert norm == 0 and x.grad.isfinite().all()


def test_residual_direction_refuses_what_is_no_cloud(contraction):
    func, x, z = contraction
    with fails(TypeError, "problem must be a Pushforward, got Coupled"):
        residual_direction(func, z)
    with fails(ValueError, "image must have shape (2, 4, 3), got (2, 3, 3)"):
        residual_direction(Pushforward(func, (x,)), z, z[:, :3])
