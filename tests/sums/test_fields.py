"""Potential and field: against the reference, under padding and coincidence, and their derivatives."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import references
from ddeq_fast import Gaussian, Riesz, field, potential, potential_and_field
from ddeq_fast.sums.backends import dense

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6}


def assert_near(value, expected, tolerance):
    """Largest error relative to the largest expected value."""
    expected = np.asarray(expected)
    value = value.detach().double().numpy()
    assert value.shape == expected.shape
    assert np.abs(value - expected).max() <= tolerance * np.abs(expected).max()


def assert_reference(x, y, v, kernel):
    u, f = potential_and_field(x, y, kernel, charges=v)
    assert u.dtype == f.dtype == x.dtype
    expected_u, expected_f = references.potential_and_field(x, y, v, kernel)
    assert_near(u, expected_u, TOLERANCE[x.dtype])
    assert_near(f, expected_f, TOLERANCE[x.dtype])
    torch.testing.assert_close(potential(x, y, kernel, charges=v), u, rtol=0, atol=0)
    torch.testing.assert_close(field(x, y, kernel, charges=v), f, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("d", [1, 2, 3, 17, 128])
def test_batched(kernel, d, dtype, cloud):
    assert_reference(
        cloud(2, 7, d, dtype=dtype), cloud(2, 11, d, dtype=dtype), cloud(2 * 11).view(2, 11).to(dtype), kernel
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("m, n", [(13, 5), (1, 9), (9, 1), (1, 1)])
def test_single_cloud_of_any_size(kernel, m, n, dtype, cloud):
    assert_reference(cloud(m, 3, dtype=dtype), cloud(n, 3, dtype=dtype), cloud(n, dtype=dtype), kernel)


def test_a_cloud_alone_is_a_batch_of_one(kernel, cloud):
    x, y, v = cloud(6, 2), cloud(7, 2), cloud(7)
    for alone, batch in zip(
        potential_and_field(x, y, kernel, charges=v),
        potential_and_field(x[None], y[None], kernel, charges=v[None]),
        strict=True,
    ):
        torch.testing.assert_close(alone, batch[0], rtol=0, atol=0)


def test_batches_do_not_mix(kernel, cloud):
    x, y, v = cloud(3, 5, 2), cloud(3, 6, 2), cloud(18).view(3, 6)
    u, f = potential_and_field(x, y, kernel, charges=v)
    for b in range(3):
        u_b, f_b = potential_and_field(x[b], y[b], kernel, charges=v[b])
        torch.testing.assert_close(u[b], u_b, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(f[b], f_b, rtol=1e-13, atol=1e-14)


def test_defaults_are_unit_charges_and_the_energy_distance(cloud):
    x, y = cloud(5, 3), cloud(4, 3)
    torch.testing.assert_close(potential(x, y), -torch.cdist(x, y).sum(1))
    torch.testing.assert_close(field(x, y), field(x, y, Riesz(1.0), charges=torch.ones(4, dtype=x.dtype)))


def test_inputs_that_are_not_contiguous(kernel, cloud):
    x, y, v = cloud(3, 5, 2).transpose(0, 2), cloud(3, 14, 2).transpose(0, 2)[:, ::2], cloud(28).view(2, 14)[:, ::2]
    assert_reference(x, y, v, kernel)


def test_field_is_the_gradient_of_the_potential(kernel, cloud):
    x, y, v = cloud(2, 5, 3, grad=True), cloud(2, 6, 3), cloud(12).view(2, 6)
    u, f = potential_and_field(x, y, kernel, charges=v)
    (gradient,) = torch.autograd.grad(u.sum(), x)
    torch.testing.assert_close(gradient, f.detach(), rtol=1e-12, atol=1e-13)


# Padding and coincidence


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("garbage", [0.0, -3.0, 1e6])
@pytest.mark.parametrize("differences", [0, 100])
def test_zero_charges_are_padding(kernel, differences, garbage, dtype, cloud, monkeypatch):
    monkeypatch.setattr(dense, "DIFFERENCE_DIMENSION", differences)
    x, y = cloud(2, 5, 3, dtype=dtype), cloud(2, 6, 3, dtype=dtype)
    v = cloud(12).view(2, 6).to(dtype)
    padded = torch.cat((y, torch.full((2, 3, 3), garbage, dtype=dtype)), 1)
    charges = torch.cat((v, torch.zeros(2, 3, dtype=dtype)), 1)
    padded.requires_grad_(), charges.requires_grad_()
    u, f = potential_and_field(x, padded, kernel, charges=charges)
    expected_u, expected_f = references.potential_and_field(x, y, v, kernel)
    assert_near(u, expected_u, TOLERANCE[dtype])
    assert_near(f, expected_f, TOLERANCE[dtype])
    dy, dv = torch.autograd.grad(u.sum() + f.square().sum(), (padded, charges))
    assert (dy[:, 6:] == 0).all() and torch.isfinite(dv).all()
    y.requires_grad_()
    u, f = potential_and_field(x, y, kernel, charges=v)
    (expected,) = torch.autograd.grad(u.sum() + f.square().sum(), y)
    assert_near(dy[:, :6], expected, 10 * TOLERANCE[dtype])


@pytest.mark.parametrize("differences", [0, 100])
def test_far_targets_without_gradient_cost_no_digits(kernel, differences, cloud, monkeypatch):
    """Padding on the side of the targets: nothing flows back from it, nor from its distance."""
    monkeypatch.setattr(dense, "DIFFERENCE_DIMENSION", differences)
    x, y, move = cloud(2, 5, 3, dtype=torch.float32), cloud(2, 6, 3, dtype=torch.float32), cloud(2, 5, 3).float()
    far = torch.cat((x, torch.full((2, 3, 3), 1e6)), 1)

    def gradients(x, y):
        y = y.clone().requires_grad_()
        u, f = potential_and_field(x, y, kernel)
        return torch.autograd.grad(u[:, :5].sum() + (f[:, :5] * move.to(f.dtype)).sum(), y)[0]

    assert_near(gradients(far, y), gradients(x.double(), y.double()), 1e-5)


def test_coincident_points_feel_no_force(kernel, cloud):
    x = cloud(1, 3).expand(4, 3).contiguous().requires_grad_()
    y = x.detach().clone().requires_grad_()
    v = cloud(4).requires_grad_()
    u, f = potential_and_field(x, y, kernel, charges=v)
    assert (f == 0).all()
    torch.testing.assert_close(u, v.sum() * references.at_zero(kernel) * torch.ones_like(u), rtol=1e-12, atol=1e-13)
    first = torch.autograd.grad(u.sum() + (f * cloud(4, 3)).sum() + f.square().sum(), (x, y, v), create_graph=True)
    assert all(torch.isfinite(g).all() for g in first)
    second = torch.autograd.grad(sum((g * g).sum() for g in first), (x, y, v))
    assert all(torch.isfinite(g).all() for g in second)


def test_some_coincident_pairs(kernel, cloud):
    y = cloud(2, 6, 3)
    x = torch.cat((y[:, :2], cloud(2, 3, 3)), 1)
    assert_reference(x, y, cloud(12).view(2, 6), kernel)


def test_a_cloud_and_itself(kernel, cloud):
    x = cloud(2, 8, 3)
    assert_reference(x, x, cloud(16).view(2, 8), kernel)


# Derivatives


@pytest.mark.parametrize("function", [potential, field, potential_and_field])
def test_first_and_second_derivatives(function, kernel, cloud):
    inputs = (cloud(2, 3, 2, grad=True), cloud(2, 4, 2, grad=True), cloud(8).view(2, 4).requires_grad_())
    assert gradcheck(lambda x, y, v: function(x, y, kernel, charges=v), inputs)
    assert gradgradcheck(lambda x, y, v: function(x, y, kernel, charges=v), inputs, atol=1e-4)


@pytest.mark.parametrize("function", [potential, field])
@pytest.mark.parametrize("d", [2, 9])
def test_derivatives_of_a_cloud_against_itself(function, d, kernel, cloud):
    n = 4 if d == 2 else 2
    inputs = (cloud(n, d, grad=True), cloud(n).requires_grad_())
    assert gradcheck(lambda x, v: function(x, x, kernel, charges=v), inputs)
    assert gradgradcheck(lambda x, v: function(x, x, kernel, charges=v), inputs, atol=1e-4)


def test_second_derivatives_when_inputs_depend_on_each_other(kernel, cloud):
    """Charges and incoming gradients computed from the positions: no path may count twice."""

    def energy(x, y):
        y = y + x.mean(0)
        return field(x, y, kernel, charges=y.square().sum(-1)).square().sum()

    assert gradgradcheck(energy, (cloud(3, 2, grad=True), cloud(4, 2, grad=True)), atol=1e-4)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_derivatives_in_some_of_the_inputs(kernel, wanted, cloud):
    def gradients(which):
        inputs = [x, y, v]
        inputs = [t.clone().requires_grad_(i in which) for i, t in enumerate(inputs)]
        u, f = potential_and_field(*inputs[:2], kernel, charges=inputs[2])
        return torch.autograd.grad(u.square().sum() + f.square().sum(), [inputs[i] for i in which])

    x, y, v = cloud(2, 5, 3), cloud(2, 4, 3), cloud(8).view(2, 4)
    everything = gradients((0, 1, 2))
    for i, gradient in zip(wanted, gradients(wanted), strict=True):
        torch.testing.assert_close(gradient, everything[i], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("d", [3, 128])
def test_gradients_in_single_precision(kernel, d, cloud):
    def gradients(*inputs):
        inputs = [t.clone().requires_grad_() for t in inputs]
        u, f = potential_and_field(*inputs[:2], kernel, charges=inputs[2])
        return torch.autograd.grad(u.square().sum() + f.square().sum(), inputs)

    inputs = [cloud(2, 9, d, dtype=torch.float32), cloud(2, 8, d, dtype=torch.float32), cloud(16).view(2, 8).float()]
    for single, double in zip(gradients(*inputs), gradients(*(t.double() for t in inputs)), strict=True):
        assert single.dtype == torch.float32
        assert_near(single, double, 1e-5)


def test_no_graph_without_gradients(cloud):
    assert not potential(cloud(3, 2), cloud(3, 2)).requires_grad
    with torch.no_grad():
        assert not field(cloud(3, 2, grad=True), cloud(3, 2)).requires_grad


# The dense backend's tiles and precision


@pytest.mark.parametrize("d", [2, 17])
@pytest.mark.parametrize("pairs", [1, 20, 1 << 24])
@pytest.mark.parametrize("differences", [0, 8, 100])
def test_tiles_and_branches_agree(kernel, d, pairs, differences, cloud, monkeypatch):
    x, y, v, move = cloud(2, 7, d, grad=True), cloud(2, 9, d, grad=True), cloud(18).view(2, 9), cloud(2, 7, d)
    monkeypatch.setattr(dense, "tile_pairs", lambda *_: pairs)
    monkeypatch.setattr(dense, "DIFFERENCE_DIMENSION", differences)
    assert_reference(x, y, v, kernel)
    gradients = torch.autograd.grad((field(x, y, kernel, charges=v) * move).sum(), (x, y))
    monkeypatch.undo()
    expected = torch.autograd.grad((field(x, y, kernel, charges=v) * move).sum(), (x, y))
    for value, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("differences", [0, 100])
def test_far_from_the_origin(kernel, differences, cloud, monkeypatch):
    """Rounding the coordinates themselves is all that an offset may cost."""
    monkeypatch.setattr(dense, "DIFFERENCE_DIMENSION", differences)
    x, y = (cloud(2, n, 3, dtype=torch.float32) + 1000 for n in (7, 9))
    move = cloud(2, 7, 3)

    def derivatives(x, y):
        x = x.clone().requires_grad_()
        f = field(x, y, kernel)
        return f.detach(), *torch.autograd.grad((f * move.to(x.dtype)).sum(), x)

    exact = derivatives(x.double() - 1000, y.double() - 1000)
    for value, expected in zip(derivatives(x, y), exact, strict=True):
        assert_near(value, expected, 1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("differences", [0, 100])
def test_half_precision(kernel, dtype, tolerance, differences, cloud, monkeypatch):
    """Only the result is rounded: sums are carried out in single precision."""
    monkeypatch.setattr(dense, "DIFFERENCE_DIMENSION", differences)
    x, y, v = cloud(2, 7, 3, dtype=dtype, grad=True), cloud(2, 9, 3, dtype=dtype), cloud(18).view(2, 9).to(dtype)
    u, f = potential_and_field(x, y, kernel, charges=v)
    assert u.dtype == f.dtype == dtype
    expected_u, expected_f = references.potential_and_field(x, y, v, kernel)
    assert_near(u, expected_u, tolerance)
    assert_near(f, expected_f, tolerance)
    (gradient,) = torch.autograd.grad(f.sum(), x)
    double = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(field(double, y.double(), kernel, charges=v.double()).sum(), double)
    assert_near(gradient, expected, tolerance)


def test_autocast_does_not_lower_the_precision(kernel, cloud):
    x, y = cloud(2, 7, 3, dtype=torch.float32), cloud(2, 9, 3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = potential_and_field(x, y, kernel)
    for value, expected in zip(under, potential_and_field(x, y, kernel), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_large_gaussian_distances_underflow_quietly(cloud):
    u, f = potential_and_field(cloud(3, 2), cloud(3, 2) + 1e3, Gaussian(0.1))
    assert (u == 0).all() and (f == 0).all()
