"""Radial kernels: values, derivatives, algebra and argument checks."""

import math

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Gaussian, InverseMultiquadric, Laplacian, Mixture, RadialKernel, Riesz


@pytest.fixture
def q():
    return torch.linspace(0.01, 9.0, 200, dtype=torch.float64)


def test_value_against_closed_formula(kernel, q):
    expected, _ = references.profile(kernel, q.sqrt().numpy())
    np.testing.assert_allclose(kernel.k(q).numpy(), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "kernel, at_distance_two",
    [
        (Riesz(1.0), -2.0),
        (Riesz(0.5), -math.sqrt(2)),
        (Riesz(1.5), -(2**1.5)),
        (Gaussian(2.0), math.exp(-0.5)),
        (Laplacian(4.0), math.exp(-0.5)),
        (InverseMultiquadric(2.0), 1 / math.sqrt(2)),
        (2 * Riesz(1.0) + Gaussian(2.0), -4 + math.exp(-0.5)),
    ],
)
def test_value_at_distance_two(kernel, at_distance_two):
    assert kernel.k(torch.tensor(4.0, dtype=torch.float64)).item() == pytest.approx(at_distance_two, rel=1e-14)


def test_phi_is_twice_the_derivative_of_k(kernel, q):
    q.requires_grad_()
    (slope,) = torch.autograd.grad(kernel.k(q).sum(), q)
    torch.testing.assert_close(kernel.phi(q).detach(), 2 * slope, rtol=1e-12, atol=1e-14)


def test_dphi_is_the_derivative_of_phi(kernel, q):
    q.requires_grad_()
    (slope,) = torch.autograd.grad(kernel.phi(q).sum(), q)
    torch.testing.assert_close(kernel.dphi(q).detach(), slope, rtol=1e-12, atol=1e-14)


def test_phi_and_dphi_against_finite_differences(kernel, q):
    step = 1e-6 * q
    slope = (kernel.k(q + step) - kernel.k(q - step)) / (2 * step)
    torch.testing.assert_close(kernel.phi(q), 2 * slope, rtol=1e-6, atol=1e-9)
    slope = (kernel.phi(q + step) - kernel.phi(q - step)) / (2 * step)
    torch.testing.assert_close(kernel.dphi(q), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_zero(kernel, dtype):
    q = torch.zeros(3, dtype=dtype)
    torch.testing.assert_close(kernel.k(q), torch.full_like(q, references.at_zero(kernel)), rtol=1e-6, atol=0)
    for value in (kernel.phi(q), kernel.dphi(q)):
        assert value.dtype == dtype and torch.isfinite(value).all()


@pytest.mark.parametrize("kernel", [Riesz(0.5), Riesz(1.0), Riesz(1.5), Laplacian(0.7)], ids=repr)
def test_a_cusp_exerts_no_force(kernel):
    q = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert kernel.phi(q)[0] == 0 and kernel.dphi(q)[0] == 0
    assert kernel.phi(q)[1] != 0 and kernel.dphi(q)[1] != 0


def test_gradients_through_zero_are_finite(kernel):
    q = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    for function in (kernel.k, kernel.phi, kernel.dphi):
        (slope,) = torch.autograd.grad(function(q).sum(), q)
        assert torch.isfinite(slope).all()


def test_shape_and_dtype_are_kept(kernel):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        q = torch.rand(2, 3, 4).to(dtype)
        for value in (kernel.k(q), kernel.phi(q), kernel.dphi(q)):
            assert value.shape == q.shape and value.dtype == dtype


def test_hashable_and_equal_by_value(kernel):
    assert {kernel: "found"}[kernel] == "found"
    assert Riesz(1) == Riesz(1.0) and hash(Riesz(1)) == hash(Riesz(1.0))
    assert Gaussian(1.0) != Laplacian(1.0) and Gaussian(1.0) != Gaussian(2.0)
    assert Riesz() + Gaussian(1) == Mixture(((1.0, Riesz(1.0)), (1.0, Gaussian(1.0))))


def test_immutable():
    with pytest.raises(AttributeError):
        Riesz(1.0).r = 1.5
    with pytest.raises(AttributeError):
        (Riesz() + Gaussian()).components = ()


def test_defaults():
    assert Riesz().r == 1.0
    assert Gaussian().sigma == Laplacian().sigma == InverseMultiquadric().sigma == 1.0


def test_terms():
    assert Riesz(0.5).terms() == ((1.0, Riesz(0.5)),)
    mixture = 0.5 * Gaussian(2.0) + Riesz(1.0)
    assert mixture.terms() == ((0.5, Gaussian(2.0)), (1.0, Riesz(1.0)))


def test_nested_mixtures_are_flattened():
    inner = 0.5 * Gaussian(2.0) + 3 * Riesz(1.0)
    outer = Mixture(((2.0, inner), (1.0, Laplacian(1.0))))
    assert outer.terms() == ((1.0, Gaussian(2.0)), (6.0, Riesz(1.0)), (1.0, Laplacian(1.0)))
    assert all(not isinstance(part, Mixture) for _, part in outer.terms())
    assert hash(outer) == hash(2 * inner + Laplacian(1.0))


def test_algebra_is_linear(kernel, q):
    other = Gaussian(1.1)
    combined = 2 * kernel + other * -0.5
    for name in ("k", "phi", "dphi"):
        expected = 2 * getattr(kernel, name)(q) - 0.5 * getattr(other, name)(q)
        torch.testing.assert_close(getattr(combined, name)(q), expected, rtol=1e-12, atol=1e-14)


def test_the_base_class_leaves_the_formulas_open(q):
    for name in ("k", "phi", "dphi"):
        with pytest.raises(NotImplementedError):
            getattr(RadialKernel(), name)(q)


@pytest.mark.parametrize("r", [0, 0.0, 2, 2.0, -1.0, 2.5, math.inf, -math.inf, math.nan])
def test_riesz_exponent_outside_the_open_interval(r):
    with pytest.raises(ValueError, match=rf"^r must lie in \(0, 2\), got {r!r}$"):
        Riesz(r)


@pytest.mark.parametrize("kind", [Gaussian, Laplacian, InverseMultiquadric])
@pytest.mark.parametrize("sigma", [0, 0.0, -1.5, math.inf, math.nan])
def test_bandwidth_not_positive(kind, sigma):
    with pytest.raises(ValueError, match=rf"^sigma must lie in \(1e-100, 1e\+100\), got {sigma!r}$"):
        kind(sigma)


@pytest.mark.parametrize("kind, name", [(Riesz, "r"), (Gaussian, "sigma"), (Laplacian, "sigma")])
@pytest.mark.parametrize(
    "value, got", [(True, "bool"), ("1.0", "str"), (None, "NoneType"), (1j, "complex"), (torch.ones(1), "Tensor")]
)
def test_parameter_of_the_wrong_type(kind, name, value, got):
    with pytest.raises(TypeError, match=f"^{name} must be a number, got {got}$"):
        kind(value)


def test_mixture_arguments():
    with pytest.raises(ValueError, match=r"^components must not be empty$"):
        Mixture(())
    with pytest.raises(TypeError, match=r"^components must be \(weight, kernel\) pairs, got Riesz\(r=1.0\)$"):
        Mixture((Riesz(),))
    with pytest.raises(TypeError, match=r"^components must be \(weight, kernel\) pairs, got \(1.0, 'riesz'\)$"):
        Mixture(((1.0, "riesz"),))
    with pytest.raises(TypeError, match=r"^weight must be a number, got str$"):
        Mixture((("1", Riesz()),))
    with pytest.raises(ValueError, match=r"^weight must lie in \(-1e\+100, 1e\+100\), got nan$"):
        Mixture(((math.nan, Riesz()),))


@pytest.mark.parametrize("components, got", [(Riesz(), "Riesz"), (3, "int"), (None, "NoneType")])
def test_mixture_of_something_other_than_a_sequence(components, got):
    with pytest.raises(TypeError, match=rf"^components must be a tuple of \(weight, kernel\) pairs, got {got}$"):
        Mixture(components)


@pytest.mark.parametrize("factor, got", [("2", "str"), (True, "bool"), (None, "NoneType"), (Riesz(), "Riesz")])
def test_factor_of_the_wrong_type(factor, got):
    with pytest.raises(TypeError, match=f"^factor must be a number, got {got}$"):
        Riesz() * factor


def test_factor_not_finite():
    with pytest.raises(ValueError, match=r"^factor must lie in \(-1e\+100, 1e\+100\), got nan$"):
        math.nan * Riesz()


@pytest.mark.parametrize("other", [3, "kernel", None])
def test_sum_with_something_other_than_a_kernel(other):
    with pytest.raises(TypeError, match=rf"unsupported operand type.* 'Gaussian' and '{type(other).__name__}'"):
        Gaussian() + other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [Gaussian, Laplacian])
def test_exponentials_are_normal_numbers_or_zero(kind, dtype):
    """CPUs take up to a hundred times as long for others; what is no zero has all its digits."""
    q = torch.logspace(0, 8, 4000, dtype=dtype)
    tiny = torch.finfo(dtype).tiny
    kernel = kind(1.0)
    found, expected = kernel.k(q), kernel.k(q.double())
    zero = found == 0
    assert bool(zero.any()) and found[~zero].min() >= tiny and expected[zero].max() < 1.1 * tiny
    relative = (found.double() - expected)[~zero] / expected[~zero]
    assert relative.abs().max() < 100 * torch.finfo(dtype).eps


def test_exponentials_in_half_precision_are_not_cut():
    q = torch.linspace(0, 16, 50, dtype=torch.float16)
    assert torch.equal(Gaussian(1.0).k(q), torch.exp(q * -0.5))
