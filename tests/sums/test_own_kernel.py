"""An elementary kernel from outside the package: its class, registered, is all that dense and compiled sums need."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from ddeq_fast import Gaussian, Riesz, potential, potential_and_field, squared_mmd
from ddeq_fast.sums import backends, naive, operators, radial, text
from ddeq_fast.sums.radial import Elementary, Scaled


@dataclass(frozen=True)
class Cauchy(Scaled):
    """k = 1 / (1 + |x - y|^2 / sigma^2)."""

    name: ClassVar[str] = "cauchy"

    @staticmethod
    def profile(order, q, number, code):
        rate = 1 / number**2
        k = 1 / (1 + q * rate)
        if order == "k":
            return k
        return -2 * rate * k * k if order == "phi" else 8 * rate * k * k * k * (q * rate)


@pytest.fixture
def cauchy(monkeypatch):
    """The class, registered for one test."""
    monkeypatch.setattr(radial, "_REGISTERED", dict(radial._REGISTERED))
    return radial.register(Cauchy)


def test_profile_is_consistent(cauchy):
    q = torch.linspace(0.01, 9, 50, dtype=torch.float64, requires_grad=True)
    kernel = cauchy(0.7)
    for value, slope in ((kernel.k, lambda q: kernel.phi(q) / 2), (kernel.phi, kernel.dphi)):
        torch.testing.assert_close(torch.autograd.grad(value(q).sum(), q)[0], slope(q))
    assert kernel.smooth and not (kernel + Riesz(1.0)).smooth


def test_text(cauchy):
    kernel = 0.1 * cauchy(1 / 3) + Gaussian(2.0)
    assert str(kernel) == "0.1*cauchy:0.3333333333333333 + gaussian:2"
    assert text.parse(str(kernel)) == kernel
    assert text.parse("cauchy") == cauchy(1.0)


def test_rescaled(cauchy):
    kernel = (0.5 * cauchy(2.0) + Riesz(1.0)).rescaled(0.25, 1.0)
    assert kernel == 0.5 * cauchy(1.0) + Riesz(1.0) and kernel.bandwidth == 1.0
    assert Riesz(1.0).bandwidth is None and Riesz(1.0).rescaled(3.0) == Riesz(1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["dense", "compiled"])
def test_sums_and_derivatives(backend, cauchy, cloud):
    kernel = 0.5 * cauchy(0.7) + Gaussian(1.3)
    x, y, v = cloud(2, 6, 3, grad=True), cloud(2, 5, 3, grad=True), cloud(10).view(2, 5).requires_grad_()
    assert backends.unsupported(backend, x, y, kernel) is None
    found = potential_and_field(x, y, kernel, charges=v, backend=backend)
    expected = naive.evaluate(x, y, v, kernel)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    gradients = [
        torch.autograd.grad(u.sum() + f.square().sum(), (x, y, v), create_graph=True) for u, f in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)
    seconds = [torch.autograd.grad(sum(part.square().sum() for part in one), (x, y, v)) for one in gradients]
    torch.testing.assert_close(*seconds, rtol=1e-8, atol=1e-9)


def test_backends_without_its_code_refuse_it(cauchy):
    x = torch.zeros(1, 2, 3)
    for name in ("triton", "keops", "sliced"):
        assert backends.unsupported(name, x, x, cauchy(1.0)) is not None


def test_unregistered_it_is_summed_by_the_dense_backend(cloud):
    x, y = cloud(4, 2), cloud(5, 2)
    assert "not registered" in backends.unsupported("compiled", x[None], y[None], Cauchy(0.7))
    torch.testing.assert_close(
        potential(x, y, Cauchy(0.7)), naive.evaluate(x[None], y[None], torch.ones(1, 5), Cauchy(0.7))[0][0]
    )
    assert str(Cauchy(0.7)) == "Cauchy(sigma=0.7)"


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("gaussian", ValueError, "^kernel name 'gaussian' is taken$"),
        ("Two words", ValueError, "^name must be made of lower-case letters, digits and underscores, got 'Two words'$"),
        ("own", ValueError, "^name must be made of"),
        ("", ValueError, "^name must be made of"),
    ],
)
def test_names_that_cannot_be_registered(name, error, message, cauchy):
    with pytest.raises(error, match=message):
        radial.register(type("Other", (Elementary,), {"name": name}))


@pytest.mark.parametrize("bad", [Gaussian(1.0), dict, radial.RadialKernel])
def test_what_cannot_be_registered(bad):
    with pytest.raises(TypeError, match=r"^kind must be a subclass of Elementary, got "):
        radial.register(bad)


def test_the_door_takes_kernels(kernel, cloud):
    """Every function of the door against the plain formulas."""
    x, y, v, s, t = cloud(2, 4, 3), cloud(2, 5, 3), cloud(10).view(2, 5), cloud(2, 4, 3), cloud(2, 5, 3)
    for found in (operators.evaluate, operators.evaluate_plain):
        torch.testing.assert_close(found(x, y, v, kernel, "auto", True, True), naive.evaluate(x, y, v, kernel))
        u, f = found(x, y, v, kernel, "auto", False, True)
        assert u.numel() == 0 and f.shape == x.shape
    torch.testing.assert_close(operators.tangent(x, y, v, s, t, kernel, "auto"), naive.tangent(x, y, v, s, t, kernel))
    torch.testing.assert_close(operators.energy(y, v, kernel, "auto"), naive.energy(y, v, kernel)[0])


def test_a_backend_from_outside(monkeypatch, cloud):
    """The plain formulas as a backend: two sums and what it refuses are all that MMD and its gradients need."""

    class Plain:
        def unsupported(self, x, y, kernel):
            return None if x.shape[2] == 2 else "needs points in the plane"

        def evaluate(self, x, y, v, kernel, potential, field):
            u, f = naive.evaluate(x, y, v, kernel)
            return (u if potential else None), (f if field else None)

        def tangent(self, x, y, v, s, t, kernel):
            return naive.tangent(x, y, v, s, t, kernel)

    monkeypatch.setattr(backends.registry, "_REGISTRY", dict(backends.registry._REGISTRY))
    backends.register("plain", Plain())
    x, y = cloud(4, 2, grad=True), cloud(5, 2, grad=True)
    for function in (potential, squared_mmd):
        assert torch.autograd.gradcheck(lambda x, y, f=function: f(x, y, Gaussian(0.9), backend="plain"), (x, y))
        assert torch.autograd.gradgradcheck(lambda x, y, f=function: f(x, y, Gaussian(0.9), backend="plain"), (x, y))
        torch.testing.assert_close(function(x, y, backend="plain"), function(x, y, backend="dense"))
    with pytest.raises(ValueError, match=r"^backend 'plain' cannot run this: needs points in the plane$"):
        potential(cloud(4, 3), cloud(5, 3), backend="plain")
