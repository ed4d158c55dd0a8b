"""Earth mover's distance: all permutations, linear programs, bounds on both sides, padding, gradients, refusals."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ddeq_fast import earth_movers_distance
from ddeq_fast.distances import blocks, sinkhorn, transport

optimize = pytest.importorskip("scipy.optimize")


def linear_program(x, y, a=None, b=None):
    """The optimal cost by a general solver."""
    (m, _), (n, _) = x.shape, y.shape
    a, b = (np.ones(k) / k if w is None else np.asarray(w / w.sum()) for w, k in ((a, m), (b, n)))
    cost = np.sqrt(((np.asarray(x)[:, None] - np.asarray(y)[None]) ** 2).sum(2))
    marginals = np.concatenate((np.kron(np.eye(m), np.ones(n)), np.kron(np.ones(m), np.eye(n))))
    return optimize.linprog(cost.ravel(), A_eq=marginals, b_eq=np.concatenate((a, b))).fun


def assert_bounds(found, expected, tol=0.05):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert found.method == "entropic"
    assert (found.distance <= expected * (1 + 1e-9) + 1e-12).all()
    assert (found.distance + found.error >= expected * (1 - 1e-9)).all()
    assert (found.error <= tol * (found.distance + found.error) + 1e-12).all()


def close(found, expected, rtol=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("n, d", [(1, 1), (2, 3), (6, 2)])
def test_all_permutations(n, d, cloud):
    x, y = cloud(n, d), cloud(n, d)
    found = earth_movers_distance(x, y)
    least = min((x - y[list(order)]).norm(dim=1).mean() for order in permutations(range(n)))
    assert found.method == "exact" and found.error == 0
    close(found.distance, least)


@pytest.mark.parametrize("m, n, d", [(1, 5, 2), (7, 12, 1), (13, 13, 3), (21, 10, 8)])
def test_entropic_bounds_of_any_sizes_and_weights(m, n, d, cloud):
    x, y, a, b = cloud(2, m, d), cloud(2, n, d), cloud(2, m).abs() + 0.1, cloud(2, n).abs() + 0.1
    found = earth_movers_distance(x, y, x_weights=a, y_weights=b)
    assert_bounds(found, [linear_program(*pair) for pair in zip(x, y, a, b, strict=True)])
    assert_bounds(earth_movers_distance(x, y, method="entropic"), [linear_program(*p) for p in zip(x, y, strict=True)])


def test_the_entropic_value_is_near_the_exact_one(cloud):
    x, y = cloud(2, 150, 3), cloud(2, 150, 3) + 0.3
    exact, found = (earth_movers_distance(x, y, method=method) for method in ("exact", "entropic"))
    assert_bounds(found, exact.distance)
    close(found.distance, exact.distance, 0.02)
    assert_bounds(earth_movers_distance(x, y, method="entropic", tol=0.02), exact.distance, 0.02)


def test_blocks_of_any_size_and_nothing_kept(cloud, monkeypatch):
    x, y = cloud(2, 17, 2), cloud(2, 23, 2)
    expected = earth_movers_distance(x, y)
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 200)
    for kept in (0, 1 << 20):
        monkeypatch.setattr(sinkhorn, "KEPT_ENTRIES", kept)
        found = earth_movers_distance(x, y)
        close(found.distance, expected.distance, 1e-9)
        close(found.error, expected.error, 1e-9)


@pytest.mark.parametrize("method", ["exact", "entropic"])
@pytest.mark.parametrize("padding", [0.0, 1e30])
def test_padding(padding, method, cloud):
    x, y = cloud(3, 7, 2), cloud(3, 8, 2)
    x_mask, y_mask = (torch.arange(n) >= n - torch.tensor([[7], [3], [1]]) for n in (7, 8))
    x[~x_mask], y[~y_mask] = padding, padding
    x.requires_grad_(), y.requires_grad_()
    found = earth_movers_distance(x, y, x_mask=x_mask, y_weights=y_mask.double(), method=method)
    alone = [earth_movers_distance(x[i][x_mask[i]], y[i][y_mask[i]]).distance.detach() for i in range(3)]
    close(found.distance.detach(), torch.stack(alone), 1e-12 if method == "exact" else 0.05)
    dx, dy = torch.autograd.grad(found.distance.sum(), (x, y))
    assert (dx[~x_mask] == 0).all() and (dy[~y_mask] == 0).all() and torch.isfinite(dx).all()
    assert earth_movers_distance(x.detach(), y.detach(), x_mask=x_mask, y_mask=y_mask).method == "exact"


@pytest.mark.parametrize("method", ["exact", "entropic"])
def test_coincident_points(method, cloud):
    x = cloud(6, 2, grad=True)
    y = x.detach().flip(0).requires_grad_()
    found = earth_movers_distance(x, y, method=method)
    assert found.distance.item() == pytest.approx(0, abs=1e-12) and found.error.item() <= 1e-9
    assert torch.isfinite(torch.stack(torch.autograd.grad(found.distance, (x, y)))).all()
    same = cloud(1, 2).expand(4, 2)
    assert earth_movers_distance(same, same, method=method).distance == 0


@pytest.mark.parametrize("scale", [1e-100, 1e-20, 1e20, 1e100])
def test_any_unit(scale, cloud):
    x, y = cloud(5, 2), cloud(7, 2)
    found, expected = earth_movers_distance(scale * x, scale * y), earth_movers_distance(x, y)
    close(found.distance / scale, expected.distance, 1e-6)


def test_exact_derivatives(cloud):
    inputs = cloud(2, 4, 2, grad=True), cloud(2, 4, 2, grad=True)
    assert gradcheck(lambda x, y: earth_movers_distance(x, y).distance, inputs)
    assert gradgradcheck(lambda x, y: earth_movers_distance(x, y).distance, inputs)


def test_entropic_gradient_is_that_of_the_plan(cloud):
    """Near that of the assignment, and its parts in balance; a second derivative is refused."""
    x, y = cloud(20, 3, grad=True), cloud(20, 3, grad=True)
    exact, found = (
        torch.autograd.grad(earth_movers_distance(x, y, method=method, tol=1e-3).distance, (x, y), create_graph=True)
        for method in ("exact", "entropic")
    )
    for one, other in zip(found, exact, strict=True):
        close(one.detach(), other.detach(), 5e-3)
    close(found[0].detach().sum(0), -found[1].detach().sum(0))
    with pytest.raises(ValueError, match=r"^method 'entropic' has no second derivatives"):
        torch.autograd.grad(found[0].sum() + x.sum(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lower_precision(dtype, cloud):
    x, y = cloud(9, 3).to(dtype), cloud(9, 3).to(dtype)
    for method in ("exact", "entropic"):
        found = earth_movers_distance(x, y, method=method)
        assert found.distance.dtype == dtype == found.error.dtype
        expected = earth_movers_distance(x.double(), y.double(), method=method).distance
        close(found.distance.double(), expected, 4 * torch.finfo(dtype).eps)


def test_auto(cloud, monkeypatch):
    x, y, ones = cloud(4, 2), cloud(4, 2), torch.ones(4, dtype=torch.float64)
    assert earth_movers_distance(x, y, x_weights=3 * ones, y_weights=ones).method == "exact"
    assert earth_movers_distance(x, y, x_mask=torch.arange(4) > 0).method == "entropic"
    monkeypatch.setattr(transport, "LARGEST_EXACT", 3)
    assert earth_movers_distance(x, y).method == "entropic"
    monkeypatch.setattr(transport, "available", lambda name: False)
    assert earth_movers_distance(x[:2], y[:2]).method == "entropic"


def test_refusals(cloud):
    x, y, a = cloud(4, 2), cloud(5, 2), torch.ones(4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"^method 'exact' needs equally many points of equal weight in x and y"):
        earth_movers_distance(x, y, method="exact")
    with pytest.raises(ValueError, match=r"^x_weights must not require derivatives"):
        earth_movers_distance(x, y, x_weights=a)
    with torch.no_grad():
        assert earth_movers_distance(x, y, x_weights=a).method == "entropic"


def test_operator_is_registered_soundly(cloud):
    ones = torch.ones(2, 4, dtype=torch.float64)
    torch.library.opcheck(transport.assignment_op, (cloud(2, 4, 3), cloud(2, 4, 3), ones, ones))
