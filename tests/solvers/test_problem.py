"""Fixed-point problems: image, linearisation, residual, selection, and the checks of a start cloud."""

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Riesz
from ddeq_fast.solvers import FixedTarget, Pushforward, solve
from problems import affine, affine_context, close, fails, small_transport

Z = torch.zeros(2, 4, 3)


def test_func_is_called_with_context_and_weights(cloud):
    seen = []
    weights = torch.ones(2, 4).double()

    def func(*arguments):
        seen.append(arguments)
        return arguments[0]

    z = cloud(2, 4, 3)
    Pushforward(func, "context", weights).image(z)
    assert [(a is b) for a, b in zip(seen[0], (z, "context", weights), strict=True)] == [True] * 3


@pytest.mark.parametrize("reusable", [False, True])
def test_linearise_is_the_transposed_jacobian(cloud, reusable):
    transport, z = small_transport(), cloud(1, 3, 8)
    context = transport.encode(cloud(1, 5, 2))
    problem = Pushforward(transport, context)
    y, vjp = problem.linearise(z, reusable=reusable)
    jacobian = torch.autograd.functional.jacobian(lambda z: transport(z, context), z).view(24, 24)
    assert close(y, transport(z, context).detach(), 1e-14) and not y.requires_grad
    for g in (cloud(1, 3, 8), cloud(1, 3, 8))[: 1 + reusable]:
        assert close(vjp(g), (g.flatten() @ jacobian).view(1, 3, 8))
    assert not z.requires_grad


def test_linearise_works_where_gradients_are_disabled(cloud):
    context = affine_context([0.5, 0.5])
    with torch.no_grad():
        _, vjp = Pushforward(affine, context).linearise(cloud(2, 4, 3))
        g = cloud(2, 4, 3)
        assert close(vjp(g), g @ context[0].mT)


def test_a_map_that_ignores_its_argument_has_no_jacobian(cloud):
    target = cloud(2, 4, 3)
    y, vjp = Pushforward(lambda z, context, weights: target).linearise(cloud(2, 4, 3))
    assert y is target and vjp is None
    parameter = cloud(2, 4, 3, grad=True)
    y, vjp = Pushforward(lambda z, context, weights: 2 * parameter).linearise(cloud(2, 4, 3))
    assert not y.requires_grad and not vjp(target).any()


@pytest.mark.parametrize("weighted", [False, True])
def test_squared_mmd_of_cloud_and_image(cloud, kernel, weighted):
    z, context = cloud(2, 4, 3), affine_context([0.5, 0.9])
    weights = torch.tensor([[1.0, 2.0, 0.5, 1.0], [1.0, 1.0, 1.0, 0.0]]).double() if weighted else None
    problem = Pushforward(affine, context, weights)
    y = problem.image(z)
    expected = references.squared_mmd(z, y, kernel, weights, weights)
    assert np.allclose(problem.squared_mmd(z, y, kernel), expected, rtol=1e-12, atol=0)


def test_squared_mmd_of_float32_clouds_is_summed_in_float64(cloud):
    """Two clouds 1e-4 apart: their MMD^2 of 1e-8 is a difference of sums near one."""
    z = cloud(1, 50, 3, dtype=torch.float32)
    y = z + 1e-4 * cloud(1, 50, 3, dtype=torch.float32)
    value = Pushforward(affine).squared_mmd(z, y, Riesz(1.0))
    assert value.dtype == torch.float64
    assert np.allclose(value, references.squared_mmd(z, y, Riesz(1.0)), rtol=1e-7)


def test_select_takes_context_weights_and_frozen_along(cloud):
    context, z = affine_context([0.5, 0.6, 0.7]), cloud(3, 4, 3)
    weights, frozen = cloud(12).view(3, 4).abs(), cloud(12).view(3, 4) > 0
    part = Pushforward(affine, context, weights, frozen).select(torch.tensor([2, 0]))
    assert torch.equal(part.image(z[[2, 0]]), affine(z, context, weights)[[2, 0]])
    assert torch.equal(part.weights, weights[[2, 0]]) and torch.equal(part.frozen, frozen[[2, 0]])


@pytest.mark.parametrize("weighted", [False, True])
def test_fixed_target_may_have_another_number_of_points(cloud, weighted):
    z, target = cloud(3, 4, 3), cloud(3, 6, 3)
    a, b = (cloud(3 * n).view(3, n).abs() if weighted else None for n in (4, 6))
    problem = FixedTarget(target, b, a)
    assert problem.image(z) is target
    value = problem.squared_mmd(z, target, Riesz(1.0))
    assert np.allclose(value, references.squared_mmd(z, target, Riesz(1.0), a, b), rtol=1e-12, atol=0)
    index = torch.tensor([2, 1])
    part = problem.select(index)
    assert torch.allclose(part.squared_mmd(z[index], part.image(None), Riesz(1.0)), value[index], rtol=1e-12)


def test_checking_changes_nothing():
    """A mask given for weights is made weights in the problem that is returned."""
    mask = torch.tensor([[True, True, False, True]] * 2)
    problem = Pushforward(affine, affine_context([0.5, 0.5], dtype=torch.float32), mask)
    before = dict(vars(problem))
    ready = problem.checked(Z)
    assert vars(problem) == before and problem.weights is mask
    assert torch.equal(ready.weights, mask.float()) and ready.context is problem.context
    expected = solve(Pushforward(affine, problem.context, mask.float()), Z, "anderson")
    assert torch.equal(solve(problem, Z, "anderson").particles, expected.particles)


def test_what_is_declared_as_batched_is_selected():
    class Tagged(Pushforward):
        batched = (*Pushforward.batched, "tag")
        tag = None

    problem = Tagged(affine, affine_context([0.1, 0.5]), torch.ones(2, 4))
    problem.tag = {"a": (torch.tensor([1, 2]), None)}
    part = problem.select(torch.tensor([1]))
    assert part.tag["a"][0].tolist() == [2] and part.weights.shape == (1, 4) and len(part.context[0]) == 1


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 1)])
def test_frozen_mask_may_have_a_trailing_axis(shape):
    problem = Pushforward(affine, None, frozen=torch.ones(shape, dtype=torch.bool))
    problem.checked(Z)
    assert problem.frozen.shape == (2, 4)


@pytest.mark.parametrize(
    ("start", "options", "error", "message"),
    [
        (Z[0], {}, ValueError, "start must have shape (B, n, d), got (4, 3)"),
        (Z.numpy(), {}, TypeError, "start must be a torch.Tensor, got ndarray"),
        (Z.long(), {}, TypeError, "start must have a floating-point dtype, got torch.int64"),
        (Z / 0, {}, ValueError, "start must be finite, got 24 NaN or infinite values of 24"),
        (Z[:, :0], {}, ValueError, "start is an empty cloud: shape (2, 0, 3)"),
        (Z, {"weights": torch.ones(2, 3)}, ValueError, "weights must have shape (2, 4), got (2, 3)"),
        (Z, {"weights": torch.zeros(2, 4)}, ValueError, "weights leaves no point in cloud 0, 1 of the batch"),
        (Z, {"weights": -torch.ones(2, 4)}, ValueError, "weights must be nonnegative, got a minimum of -1"),
        (Z, {"weights": [1.0]}, TypeError, "weights must be a torch.Tensor, got list"),
        (Z, {"frozen": "all"}, TypeError, "frozen must be a torch.Tensor, got str"),
        (Z.to_sparse(), {}, TypeError, "start must be a dense tensor, got one of layout torch.sparse_coo"),
        (Z, {"frozen": torch.ones(2, 4)}, TypeError, "frozen must have dtype torch.bool, got torch.float32"),
        (Z, {"frozen": torch.ones(2, 3) > 0}, ValueError, "frozen must have shape (2, 4), got (2, 3)"),
    ],
)
def test_bad_start(start, options, error, message):
    with fails(error, message):
        solve(Pushforward(affine, affine_context([0.5, 0.5], dtype=torch.float32), **options), start)


@pytest.mark.parametrize(
    ("target", "weights", "error", "message"),
    [
        (Z.long(), None, TypeError, "target must have a floating-point dtype, got torch.int64"),
        (Z / 0, None, ValueError, "target must be finite, got 24 NaN or infinite values of 24"),
        (Z[0], None, ValueError, "target must have shape (B, m, d), got (4, 3)"),
        (Z[:1], None, ValueError, "target has batch shape (1,) but start has (2,)"),
        (Z[..., :2], None, ValueError, "target has points in dimension 2 but start in 3"),
        (Z.double(), None, TypeError, "target has dtype torch.float64 but start has torch.float32"),
        (Z, torch.ones(2, 3), ValueError, "target_weights must have shape (2, 4), got (2, 3)"),
        (Z, torch.zeros(2, 4), ValueError, "target_weights leaves no point in cloud 0, 1 of the batch"),
    ],
)
def test_bad_target(target, weights, error, message):
    with fails(error, message):
        solve(FixedTarget(target, weights), Z)


def test_rounding_is_the_residual_of_a_map_that_rounds(cloud):
    """z -> z with one unit of rounding, of either sign, in every coordinate."""
    z, epsilon = cloud(3, 6, 5, dtype=torch.float32) + 1, torch.finfo(torch.float32).eps
    signs = torch.where(torch.arange(30).view(6, 5) % 3 == 0, -1, 1)
    problem = Pushforward(lambda z, context, weights: z * (1 + signs * epsilon))
    found = problem.squared_mmd(z, problem.image(z), Riesz(1.0)).sqrt()
    limit = problem.rounding(z, Riesz(1.0))
    assert limit.dtype == torch.float64 and ((found > 0.4 * limit) & (found < 2.5 * limit)).all()
