"""Conventions of the Chamfer distance, F-score, fidelity and density-aware Chamfer: brute force, padding, corners."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from ddeq_fast import chamfer, density_aware_chamfer, f_score, fidelity, nearest

METRICS = {
    **{f"chamfer {name}": (chamfer, {"convention": name}) for name in ("l1", "l1-half", "l2", "l2-sum")},
    **{f"fidelity {name}": (fidelity, {"convention": name}) for name in ("l1", "l2")},
    **{f"density {name}": (density_aware_chamfer, {"convention": name, "alpha": 2.0}) for name in ("l1", "l2")},
    "f_score": (lambda *args, **options: f_score(*args, 0.7, **options).score, {}),
}
EVERY = pytest.mark.parametrize("name", METRICS)


def prefixes(name):
    return ("partial", "completed") if name.startswith("fidelity") else ("x", "y")


def value(name, x, y, a=None, b=None, kind="weights"):
    function, options = METRICS[name]
    given = {f"{prefix}_{kind}": w for prefix, w in zip(prefixes(name), (a, b), strict=True)}
    return function(x, y, **options, **given)


def brute(name, x, y, a, b):
    """From the matrix of all distances in numpy."""
    x, y, a, b = (np.asarray(t) for t in (x, y, a, b))
    d = np.sqrt(((x[:, None] - y[None]) ** 2).sum(2))
    there, back = d.min(1), d.min(0)
    metric, _, form = name.partition(" ")
    if form.startswith("l2"):
        there, back = there**2, back**2
    if form == "l2-sum":
        return a @ there + b @ back
    a, b = a / a.sum(), b / b.sum()
    if metric == "chamfer":
        return (a @ there + b @ back) * (0.5 if form == "l1-half" else 1)
    if metric == "fidelity":
        return a @ there
    if metric == "f_score":
        precision, recall = a @ (there < 0.7), b @ (back < 0.7)
        return 2 * precision * recall / (precision + recall)
    total = 0
    for own, other, cost, index in ((a, b, there, d.argmin(1)), (b, a, back, d.argmin(0))):
        for i, j in enumerate(index):
            crowd = sum(own[k] for k, target in enumerate(index) if target == j)
            total += own[i] * (1 - min(1, other[j] / crowd) * np.exp(-2 * cost[i])) / 2
    return total


def close(found, expected, rtol=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=rtol, atol=rtol)


@EVERY
@pytest.mark.parametrize("m, n, d", [(1, 1, 1), (7, 5, 2), (13, 13, 3)])
def test_brute_force(name, m, n, d, cloud):
    x, y = cloud(m, d), cloud(n, d) * 0.8
    y[0] = x[0]
    close(value(name, x, y), brute(name, x, y, np.ones(m), np.ones(n)))
    a, b = cloud(m).abs() + 0.1, cloud(n).abs() + 0.1
    close(value(name, x, y, a, b), brute(name, x, y, a, b))


@EVERY
@pytest.mark.parametrize("padding", [0.0, 1e30])
def test_padding(name, padding, cloud):
    x, y = cloud(3, 7, 2), cloud(3, 9, 2)
    x_mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    y_mask = torch.arange(9) < torch.tensor([[6], [9], [1]])
    x[~x_mask], y[~y_mask] = padding, padding
    x.requires_grad_(), y.requires_grad_()
    found = value(name, x, y, x_mask, y_mask, "mask")
    alone = [value(name, x[i][x_mask[i]], y[i][y_mask[i]]) for i in range(3)]
    close(found.detach(), torch.stack(alone).detach())
    if name != "f_score":
        dx, dy = torch.autograd.grad(found.sum(), (x, y))
        assert (dx[~x_mask] == 0).all() and (dy[~y_mask] == 0).all() and torch.isfinite(dx).all()


@pytest.mark.parametrize("name", [name for name in METRICS if name != "f_score"])
def test_derivatives(name, cloud):
    x, y, a = cloud(2, 5, 2, grad=True), cloud(2, 4, 2, grad=True), (cloud(2, 5).abs() + 0.2).requires_grad_()
    assert gradcheck(lambda x, y, a: value(name, x, y, a), (x, y, a))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision(name, dtype, cloud):
    x, y = (cloud(2, n, 3).to(dtype) for n in (8, 11))
    found = value(name, x, y)
    assert found.dtype == dtype
    close(found.double(), value(name, x.double(), y.double()), 4 * torch.finfo(dtype).eps)


@EVERY
def test_a_tree_gives_the_same(name, cloud):
    pytest.importorskip("scipy")
    function, options = METRICS[name]
    x, y = cloud(2, 40, 3), cloud(2, 50, 3)
    close(function(x, y, backend="tree", **options), function(x, y, backend="dense", **options), 0)


def test_precision_and_recall(cloud):
    """Half of x lies on y, all of y near x; the threshold itself is not near."""
    y = 10 * torch.arange(4.0)[:, None]
    x = torch.cat((y, y + 1))
    found = f_score(x, y, 1.0)
    assert found == (pytest.approx(2 / 3), 0.5, 1.0)
    assert f_score(y + 4, y, 1.0) == (0, 0, 0) and f_score(y, y, 1e-30) == (1, 1, 1)


def test_a_completion_that_keeps_the_partial_cloud(cloud):
    partial = cloud(2, 6, 3, grad=True)
    completed = torch.cat((cloud(2, 9, 3), partial.detach()), 1)
    found = fidelity(partial, completed)
    assert (found == 0).all() and (torch.autograd.grad(found.sum(), partial)[0] == 0).all()
    close(fidelity(completed, partial.detach()), nearest(completed, partial.detach()).squared_distance.sqrt().mean(1))


def test_density_of_a_cloud_and_itself_and_of_a_crowd(cloud):
    x = cloud(5, 3)
    assert density_aware_chamfer(x, x) == 0
    assert density_aware_chamfer(x, x + 1e6) == 1
    # Four of five lie on one point, of which each has a fourth; of the other cloud, four share the fifth.
    line = torch.tensor([[0.0], [10.0], [11.0], [12.0], [13.0]], dtype=torch.float64)
    close(density_aware_chamfer(line[[0, 0, 0, 0, 1]], line, alpha=1e9), (4 * 3 / 4 / 5 + (3 / 4 + 3) / 5) / 2)


@pytest.mark.parametrize("convention", ["l1-half", "L1", None])
def test_unknown_conventions(convention, cloud):
    with pytest.raises(ValueError, match=r"^convention must be one of l1, l2; got"):
        fidelity(cloud(3, 2), cloud(3, 2), convention=convention)
