"""Chamfer distance and kernel density entropy: golden parity, references, padding, corners, derivatives, refusals."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import references
from ddeq_fast import chamfer, kde_entropy

# float64 results of the authors' public code (commit 9fdbd99), means over the batch; a zero row is padding.
GOLDEN = references.golden("misc")


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def close(value, expected, rtol=1e-10):
    torch.testing.assert_close(value, torch.as_tensor(expected), rtol=rtol, atol=rtol)


def ragged(cloud, *counts, padding=0.0):
    """(B, max count, 2) points and their mask."""
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return cloud(len(counts), max(counts), 2).masked_fill(~mask[..., None], padding), mask


# Chamfer distance


def test_golden_chamfer():
    x, y = golden("chamfer/x").requires_grad_(), golden("chamfer/y")
    x_mask, y_mask = ((points != 0).any(-1) for points in (x, y))
    assert not x_mask.all() and not y_mask.all()
    value = chamfer(x, y, x_mask=x_mask, y_mask=y_mask).mean()
    close(value.detach(), golden("chamfer/value"))
    close(torch.autograd.grad(value, x)[0], golden("chamfer/grad_x"))


@pytest.mark.parametrize("convention", ["l1", "l2"])
@pytest.mark.parametrize("m, n, d", [(1, 1, 1), (1, 8, 3), (9, 4, 2), (6, 6, 17)])
def test_chamfer_against_the_reference(m, n, d, convention, cloud):
    x, y = cloud(m, d), cloud(n, d)
    value = chamfer(x, y, convention=convention)
    assert value.shape == ()
    close(value, references.chamfer(x, y, 2 if convention == "l2" else 1), 1e-12)
    close(chamfer(y, x, convention=convention), value, 1e-14)


@pytest.mark.parametrize("convention", ["l1", "l2"])
@pytest.mark.parametrize("padding", [0.0, 1e30])
def test_chamfer_is_that_of_the_real_points(padding, convention, cloud):
    (x, x_mask), (y, y_mask) = ragged(cloud, 7, 1, 4, padding=padding), ragged(cloud, 2, 9, 9, padding=padding)
    x.requires_grad_(), y.requires_grad_()
    value = chamfer(x, y, x_mask=x_mask, y_mask=y_mask, convention=convention)
    alone = [chamfer(x[i][x_mask[i]], y[i][y_mask[i]], convention=convention) for i in range(3)]
    close(value, torch.stack(alone), 1e-13)
    dx, dy = torch.autograd.grad(value.sum(), (x, y))
    for gradient, expected in zip((dx, dy), torch.autograd.grad(sum(alone), (x, y)), strict=True):
        close(gradient, expected, 1e-13)
    assert (dx[~x_mask] == 0).all() and (dy[~y_mask] == 0).all()


def test_one_mask_of_two(cloud):
    (x, mask), y = ragged(cloud, 5, 3), cloud(2, 4, 2)
    full = torch.ones(2, 4, dtype=torch.bool)
    close(chamfer(x, y, x_mask=mask), chamfer(x, y, x_mask=mask, y_mask=full), 1e-14)
    close(chamfer(y, x, y_mask=mask), chamfer(y, x, x_mask=full, y_mask=mask), 1e-14)


@pytest.mark.parametrize("convention", ["l1", "l2"])
def test_chamfer_of_a_cloud_and_itself_has_no_gradient(convention, cloud):
    x = cloud(2, 6, 3, grad=True)
    y = x.detach().flip(1).requires_grad_()
    value = chamfer(x, y, convention=convention)
    first = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
    assert (value == 0).all() and all((gradient == 0).all() for gradient in first)
    second = torch.autograd.grad(sum(gradient.sum() for gradient in first), (x, y))
    assert all(torch.isfinite(gradient).all() for gradient in second)


def test_some_coincident_points(cloud):
    """The others' gradients are as if coincident ones were padding, but for the number of points."""
    x = cloud(1, 6, 2, grad=True)
    y = torch.cat((x[:, :2].detach(), cloud(1, 3, 2) + 9), 1)
    (dx,) = torch.autograd.grad(chamfer(x, y).sum(), x)
    mask = torch.arange(6)[None] >= 2
    there = (x[:, :, None] - y[:, None]).norm(dim=-1).amin(2)
    (expected,) = torch.autograd.grad((there * mask).sum() / 6, x)
    far = torch.autograd.grad((x[:, None] - y[:, 2:, None]).norm(dim=-1).amin(2).sum() / 5, x)[0]
    close(dx[0, 2:], (expected + far)[0, 2:], 1e-13)
    assert torch.isfinite(dx).all()


@pytest.mark.parametrize("convention", ["l1", "l2"])
def test_chamfer_derivatives(convention, cloud):
    (x, x_mask), (y, y_mask) = ragged(cloud, 4, 2), ragged(cloud, 3, 5)
    inputs = x.requires_grad_(), y.requires_grad_()
    assert gradcheck(lambda x, y: chamfer(x, y, x_mask=x_mask, y_mask=y_mask, convention=convention), inputs)
    assert gradgradcheck(lambda x, y: chamfer(x, y, x_mask=x_mask, y_mask=y_mask, convention=convention), inputs)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_chamfer_far_from_the_origin(dtype, tolerance, cloud):
    """Coordinates on a grid that the dtype holds, hundreds away from the origin."""
    x, y = ((cloud(2, n, 2) * 64).round() * 2 + 300 for n in (8, 9))
    value = chamfer(x.to(dtype), y.to(dtype))
    assert value.dtype == dtype
    close(value.double(), chamfer(x.to(dtype).double(), y.to(dtype).double()), tolerance)


def test_squares_that_overflow_half_precision():
    x, y = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 1000.0)
    close(chamfer(x.half(), y.half()), torch.tensor([2000.0]).half())


# Entropy


@pytest.mark.parametrize("bandwidth", ["1", "0.3"])
def test_golden_entropy(bandwidth):
    value = kde_entropy(golden("kde_entropy/x"), float(bandwidth)).mean()
    close(value, golden(f"kde_entropy/value_h{bandwidth}"))
    close(
        kde_entropy(golden("kde_entropy/x").float(), float(bandwidth)).mean(), value.float(), 1e-6
    )  # a point of density 1e-21 included


def test_golden_entropy_gradient():
    x = golden("kde_entropy/x").requires_grad_()
    close(torch.autograd.grad(kde_entropy(x, 0.3).mean(), x)[0], golden("kde_entropy/grad_h0.3"))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 37])
@pytest.mark.parametrize("d", [1, 3, 20])
def test_entropy_against_the_reference(n, d, cloud):
    x = cloud(n, d)
    value = kde_entropy(x, 0.7)
    assert value.shape == ()
    close(value, references.kde_entropy(x, 0.7), 1e-12)


@pytest.mark.parametrize("padding", [0.0, 1e30])
def test_entropy_is_that_of_the_real_points(padding, cloud):
    x, mask = ragged(cloud, 11, 1, 6, padding=padding)
    mask[0, 3] = False
    x.requires_grad_()
    value = kde_entropy(x, 0.5, mask=mask)
    alone = [kde_entropy(x[i][mask[i]], 0.5) for i in range(3)]
    close(value, torch.stack(alone), 1e-13)
    (dx,) = torch.autograd.grad(value.sum(), x)
    close(dx, torch.autograd.grad(sum(alone), x)[0], 1e-13)
    assert (dx[~mask] == 0).all()
    close(kde_entropy(x, 0.5, mask=mask[..., None]), value, 0)


def test_coincident_points_count(cloud):
    """A point excludes itself, not others in its place."""
    x = cloud(1, 2).expand(5, 2).contiguous().requires_grad_()
    value = kde_entropy(x, 0.4)
    assert value.item() == pytest.approx(-math.log(4 / 5 + 1e-10), rel=1e-13)
    assert (torch.autograd.grad(value, x)[0] == 0).all()


def test_isolated_points_have_a_finite_entropy():
    x = torch.tensor([[0.0], [1e4], [-3e4]], requires_grad=True)
    value = kde_entropy(x, 1.0)
    assert value.item() == pytest.approx(-math.log(1e-10), rel=1e-6)
    assert (torch.autograd.grad(value, x)[0] == 0).all()


def test_entropy_derivatives(cloud):
    x, mask = ragged(cloud, 5, 3)
    x.requires_grad_()
    assert gradcheck(lambda x: kde_entropy(x, 0.8, mask=mask), x)
    assert gradgradcheck(lambda x: kde_entropy(x, 0.8, mask=mask), x)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_entropy_in_half_precision(dtype, tolerance, cloud):
    x = cloud(3, 9, 2).to(dtype)
    value = kde_entropy(x, 0.6)
    assert value.dtype == dtype
    close(value.double(), kde_entropy(x.double(), 0.6), tolerance)


def test_entropy_names_its_backend(cloud):
    x = cloud(7, 2)
    close(kde_entropy(x, 0.6, backend="dense"), kde_entropy(x, 0.6), 1e-13)


# Refusals

X, Y = torch.zeros(2, 4, 3), torch.zeros(2, 5, 3)
NONE_LEFT = torch.tensor([[True], [False]])


@pytest.mark.parametrize(
    "x, y, options, error, message",
    [
        (None, Y, {}, TypeError, r"^x must be a torch.Tensor, got NoneType$"),
        (X, Y[..., :1], {}, ValueError, r"^y has points in dimension 1 but x in 3$"),
        (X, Y / 0, {}, ValueError, r"^y must be finite, got 30 NaN or infinite values of 30$"),
        (X, Y[:, :0], {}, ValueError, r"^y is an empty cloud: shape \(2, 0, 3\)$"),
        (X, Y, {"x_mask": NONE_LEFT.expand(2, 4)}, ValueError, r"^x_mask leaves no point in cloud 1 of the batch$"),
        (X, Y, {"y_mask": NONE_LEFT.expand(2, 5)}, ValueError, r"^y_mask leaves no point in cloud 1 of the batch$"),
        (X, Y, {"x_mask": NONE_LEFT.expand(2, 5)}, ValueError, r"^x_mask must have shape \(2, 4\), got \(2, 5\)$"),
        (X, Y, {"y_mask": Y[..., 0]}, TypeError, r"^y_mask must have dtype torch.bool, got torch.float32$"),
    ],
)
def test_chamfer_refuses(x, y, options, error, message):
    with pytest.raises(error, match=message):
        chamfer(x, y, **options)


def test_chamfer_refuses_a_backend():
    with pytest.raises(ValueError, match=r"^backend must be one of auto, dense, tree, triton; got 'fast'$"):
        chamfer(X, Y, backend="fast")


@pytest.mark.parametrize(
    "x, bandwidth, options, error, message",
    [
        (X[0, 0], 1.0, {}, ValueError, r"^x must have shape \(n, d\) or \(B, n, d\), got \(3,\)$"),
        (X / 0, 1.0, {}, ValueError, r"^x must be finite, got 24 NaN or infinite values of 24$"),
        (X, 0.0, {}, ValueError, r"^bandwidth must lie in \(0, inf\), got 0.0$"),
        (X, "1", {}, TypeError, r"^bandwidth must be a number, got str$"),
        (X, 1.0, {"mask": NONE_LEFT.expand(2, 4)}, ValueError, r"^mask leaves no point in cloud 1 of the batch$"),
    ],
)
def test_entropy_refuses(x, bandwidth, options, error, message):
    with pytest.raises(error, match=message):
        kde_entropy(x, bandwidth, **options)


def test_entropy_refuses_a_backend():
    with pytest.raises(ValueError, match=r"^backend must be one of auto, .*; got 'fast'$"):
        kde_entropy(X, 1.0, backend="fast")
