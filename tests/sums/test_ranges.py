"""Clouds of any size: rescaled where squares are no numbers, refused where no units help; padding may lie anywhere."""

import numpy as np
import pytest
import torch
from sample_kernels import KERNELS

import references
from ddeq_fast import (
    Gaussian,
    Laplacian,
    Mixture,
    RadialKernel,
    Riesz,
    chamfer,
    field,
    nearest,
    potential,
    potential_and_field,
    squared_mmd,
    wasserstein_gradient,
    witness,
)


def at_scale(name, scale):
    """A kernel whose shape on a cloud of that scale is the same for all scales."""
    kernel = {**KERNELS, "riesz": Riesz(1.3)}[name].rescaled(scale)
    # Values of Riesz(1) grow with the scale, those of kernels with a bandwidth do not.
    weights = [weight if term.bandwidth is None else weight * scale for weight, term in kernel.terms()]
    return (
        kernel if len(weights) == 1 else Mixture(tuple(zip(weights, (term for _, term in kernel.terms()), strict=True)))
    )


@pytest.mark.parametrize("name", ["riesz_half", "riesz_one", "riesz", "gaussian", "laplacian", "mixture"])
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e-6, 1e6, 1e20, 1e25])
@pytest.mark.parametrize("d", [3, 12])
def test_any_unit_of_length(name, scale, d, cloud):
    x, y, v = cloud(2, 5, d), cloud(2, 6, d), cloud(12).view(2, 6)
    x, y, v = (x * scale).float(), (y * scale).float(), v.float()
    kernel = at_scale(name, scale)
    u, f = potential_and_field(x, y, kernel, charges=v, backend="dense")
    expected_u, expected_f = references.potential_and_field(x, y, v, kernel)
    for value, expected in ((u, expected_u), (f, expected_f)):
        assert np.linalg.norm(value.double().numpy() - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e18])
@pytest.mark.parametrize("name", ["riesz_one", "riesz", "gaussian", "laplacian", "inverse_multiquadric"])
def test_second_derivatives_in_any_unit(name, scale, cloud):
    x, y = cloud(4, 3) * scale, cloud(5, 3) * scale
    kernel = at_scale(name, scale)

    def hessian(dtype):
        near = y.to(dtype)
        return torch.autograd.functional.hessian(lambda a: squared_mmd(a, near, kernel), x.to(dtype))

    found, expected = hessian(torch.float32).double(), hessian(torch.float64)
    assert (found - expected).norm() <= 2e-5 * expected.norm()


@pytest.mark.parametrize(
    "kernel, distance",
    [(Riesz(0.5), 1e-12), (Riesz(0.5), 1e-18), (Riesz(1.0), 1e-15), (Laplacian(1.0), 1e-16), (Riesz(1.5), 1e-18)],
    ids=repr,
)
@pytest.mark.parametrize("d", [2, 9])
def test_second_derivatives_of_points_that_nearly_coincide(kernel, distance, d):
    def hessian(dtype):
        x, y = torch.zeros(2, d, dtype=dtype), torch.zeros(2, d, dtype=dtype)
        x[1, 0], y[0, 0], y[1, 1] = 1, distance, 1
        return torch.autograd.functional.hessian(lambda a: squared_mmd(a, y, kernel, backend="dense"), x)

    found, expected = hessian(torch.float32).double(), hessian(torch.float64)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


# Padding


@pytest.mark.parametrize("far", [1e10, 1e30, -3e38])
@pytest.mark.parametrize("d", [3, 12])
def test_padding_may_lie_anywhere(far, d, cloud):
    x, y = cloud(2, 7, d).float(), cloud(2, 6, d).float()
    w = torch.ones(2, 7)
    w[:, 5:] = 0
    padded = x.clone()
    padded[:, 5:] = far
    padded.requires_grad_()
    value = squared_mmd(padded, y, x_weights=w)
    torch.testing.assert_close(value, squared_mmd(x[:, :5], y))
    (gradient,) = torch.autograd.grad(value.sum(), padded)
    own = x[:, :5].clone().requires_grad_()
    torch.testing.assert_close(gradient[:, :5], torch.autograd.grad(squared_mmd(own, y).sum(), own)[0])
    assert (gradient[:, 5:] == 0).all()
    torch.testing.assert_close(witness(y, padded, y, x_weights=w), witness(y, x[:, :5], y))
    force = wasserstein_gradient(padded, y, x_weights=w)
    torch.testing.assert_close(force[:, :5], wasserstein_gradient(x[:, :5], y))
    assert (force[:, 5:] == 0).all()
    torch.testing.assert_close(field(y, padded, charges=w), field(y, x[:, :5]))


def test_second_derivatives_beside_far_padding(cloud):
    x, y = cloud(3, 2).float(), torch.cat((cloud(4, 2).float(), torch.full((1, 2), 1e30)))
    w = torch.tensor([1.0, 1, 1, 1, 0])
    found = torch.autograd.functional.hessian(lambda a: squared_mmd(a, y, Gaussian(0.7), y_weights=w), x)
    expected = torch.autograd.functional.hessian(lambda a: squared_mmd(a, y[:4], Gaussian(0.7)), x)
    torch.testing.assert_close(found, expected)


def test_the_derivative_in_a_far_charge(cloud):
    """It exists, at points that have no charge too."""
    x, y = cloud(3, 2).float(), cloud(4, 2).float()
    y[0] = 1e30
    charges = torch.tensor([0.0, 1, 1, 1], requires_grad=True)
    (found,) = torch.autograd.grad(potential(x, y, charges=charges).sum(), charges)
    torch.testing.assert_close(found[0], torch.tensor(-3e30 * 2**0.5), rtol=1e-6, atol=0)
    own = torch.ones(3, requires_grad=True)
    torch.testing.assert_close(found[1:], torch.autograd.grad(potential(x, y[1:], charges=own).sum(), own)[0])


def test_near_and_far_points_together():
    x = torch.tensor([[0.0, 1.0], [1e30, 0.0]])
    torch.testing.assert_close(field(x, x[:1] * 0), torch.tensor([[0.0, -1.0], [-1.0, 0.0]]))
    torch.testing.assert_close(potential(x, x[:1] * 0), torch.tensor([-1.0, -1e30]))


def test_what_no_dtype_holds_is_refused(cloud):
    x = cloud(3, 2)
    for scale, size in ((1e-150, "e-150"), (1e150, r"e\+150")):
        with pytest.raises(ValueError, match=rf"^points have coordinates up to [\d.]+{size}, whose squares float64"):
            potential(x * scale, x * scale)
    with pytest.raises(ValueError, match=r"^kernel Gaussian\(sigma=1e-60\): sigma = 1e-60 is too small for"):
        potential(x * 1e100, x * 1e100, Gaussian(1e-60))


@pytest.mark.parametrize("kernel", [Gaussian(1e-30), Laplacian(1e-40), 1e60 * Gaussian(1e-90)], ids=repr)
def test_kernels_that_are_narrow_or_heavy_beyond_single_precision(kernel, cloud):
    x, y = cloud(3, 2).float(), cloud(4, 2).float()
    u, f = potential_and_field(x, y, kernel)
    assert (u == 0).all() and (f == 0).all()


class Cubic(RadialKernel):
    """A kernel of a user's own."""

    def k(self, q):
        return q.pow(1.5)

    def phi(self, q):
        return 3 * q.sqrt()

    def dphi(self, q):
        return 1.5 * torch.where(q > 0, q, 1).rsqrt() * (q > 0)


def test_own_kernels_in_any_unit(cloud):
    x = cloud(3, 2).float()
    found = potential(x * 2.0**-40, x * 2.0**-40, Cubic())
    torch.testing.assert_close(found * 2.0**120, potential(x, x, Cubic()))


# Half precision


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_weights_are_normalised_in_single_precision(dtype, tolerance):
    """The sum of these weights is beyond float16, and a count of these points beyond bfloat16's digits."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(300, 2, generator=generator).to(dtype), torch.rand(200, 2, generator=generator).to(dtype) + 0.25
    w, z = torch.full((300,), 255.0).to(dtype), torch.rand(7, 2, generator=generator).to(dtype)
    for found, expected in (
        (squared_mmd(x, y, x_weights=w), squared_mmd(x.double(), y.double())),
        (witness(z, x, y, x_weights=w), witness(z.double(), x.double(), y.double())),
        (wasserstein_gradient(x, y, x_weights=w), wasserstein_gradient(x.double(), y.double())),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * 0.5)


def test_many_points_in_half_precision():
    x = torch.rand(70_000, 1, generator=torch.Generator().manual_seed(0)).half()
    y = (x[:100] + 0.5).half()
    found = squared_mmd(x, y, backend="sliced")
    torch.testing.assert_close(found.double(), squared_mmd(x.double(), y.double(), backend="sliced"), rtol=2e-3, atol=0)


def test_weights_whose_sum_is_no_number():
    x = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^x_weights must have a finite sum, got a maximum of 1e\+308$"):
        squared_mmd(x, x + 1, x_weights=torch.full((3,), 1e308, dtype=torch.float64))
    large = torch.full((3,), 2e38)
    torch.testing.assert_close(squared_mmd(x.float(), x.float() + 1, x_weights=large), squared_mmd(x, x + 1).float())


# Nearest points


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e25])
def test_nearest_points_in_any_unit(scale, cloud):
    x, y = (cloud(2, 7, 3) * scale).float(), (cloud(2, 9, 3) * scale).float()
    q, index = nearest(x.double(), y.double())
    found = nearest(x, y)
    assert (found.index == index).all()
    torch.testing.assert_close(found.squared_distance, q.float())
    torch.testing.assert_close(chamfer(x, y).double(), chamfer(x.double(), y.double()), rtol=1e-6, atol=0)
    own = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(chamfer(own, y).sum(), own)
    own = x.double().requires_grad_()
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(chamfer(own, y.double()).sum(), own)[0])


def test_nearest_points_beside_far_padding(cloud):
    x, y = cloud(2, 5, 3).float(), cloud(2, 6, 3).float()
    x_mask, y_mask = torch.arange(5) < 4, torch.arange(6) < 3
    expected = chamfer(x[:, :4], y[:, :3])
    x[:, 4:], y[:, 3:] = 1e30, -1e25
    found = chamfer(x, y, x_mask=x_mask.expand(2, -1), y_mask=y_mask.expand(2, -1))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(nearest(x[:, :4], y, y_mask=y_mask.expand(2, -1)), nearest(x[:, :4], y[:, :3]))
