"""Starting a solve from an earlier equilibrium."""

import pytest
import torch

from ddeq_fast.models import DDEQ
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import Anderson, MMDFlow, Pushforward, solve


@pytest.fixture
def layer():
    torch.manual_seed(0)
    transport = TransportMap(8, 2, num_heads=2, dim_lift=(4, 4, 8), dim_hidden=8, dim_final=8).double()
    return DDEQ(transport, 4, solver="anderson").double()


def test_a_solved_layer_is_solved_at_once(layer, cloud):
    x = cloud(3, 6, 2)
    with torch.no_grad():
        first = layer(x)
        again = layer(x, start=first)
    assert (first.info.evaluations > 1).all() and (again.info.evaluations == 1).all()
    assert torch.equal(again.particles, first.particles) and torch.equal(again.info.scale, first.info.scale)
    torch.testing.assert_close(again.info.residual, first.info.residual, rtol=1e-6, atol=1e-12)


def test_a_small_change_takes_few_evaluations(layer, cloud):
    x = cloud(3, 6, 2)
    with torch.no_grad():
        first = layer(x)
        moved = x + 1e-3 * cloud(3, 6, 2)
        warm, cold = layer(moved, start=first), layer(moved)
    assert warm.info.converged.all() and (warm.info.evaluations < cold.info.evaluations).all()


@pytest.mark.parametrize(
    "solver",
    [Anderson(tol=0.5), MMDFlow(lr=0.2, tol=0.5, check_every=1), "auto"],
    ids=["anderson", "flow", "auto"],
)
def test_residuals_are_relative_to_the_scale(solver, cloud):
    problem, start = Pushforward(lambda z, c, w: 0.5 * z, ()), cloud(2, 4, 3)
    absolute = solve(problem, start, Anderson(relative=False, tol=1e9)).info.residual
    _, info = solve(problem, start, solver, scale=absolute * torch.tensor([1e6, 1.0]))
    assert info.evaluations[0] == 1 and info.residual[0] == pytest.approx(1e-6)
    assert info.evaluations[1] > 1


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (1.0, TypeError, "scale must be a torch.Tensor, got float"),
        (torch.ones(3), ValueError, r"scale must have shape \(2,\), got \(3,\)"),
        (torch.tensor([1.0, 0.0]), ValueError, "scale must be positive, got a minimum of 0"),
        (torch.tensor([1.0, torch.inf]), ValueError, "scale must be finite, got 1 NaN or infinite values of 2"),
        (torch.ones(2) > 0, TypeError, "scale must have a floating-point dtype, got torch.bool"),
    ],
)
def test_bad_scales(scale, error, message, cloud):
    with pytest.raises(error, match=f"^{message}$"):
        solve(Pushforward(lambda z, c, w: z, ()), cloud(2, 4, 3), scale=scale)
