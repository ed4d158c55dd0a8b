"""Gradients by name, gradients of the user's own, what they print, bad options of the registry."""

import dataclasses
import textwrap

import pytest
import torch

from ddeq_fast import Gaussian, gradients
from ddeq_fast.gradients import Backward, BackwardInfo, Bilevel, ImplicitFunction, Phantom, base
from ddeq_fast.models import DDEQ
from ddeq_fast.solvers import Anderson
from problems import close, fails, small_transport


@pytest.fixture
def own_names(monkeypatch):
    """Names registered in a test are forgotten after it."""
    monkeypatch.setattr(base.BACKWARDS, "factories", dict(base.BACKWARDS.factories))


@pytest.fixture
def one_step(own_names):
    """The class in the documentation, registered as "one-step"."""
    text = base.__doc__
    code = textwrap.dedent(text[text.index("    class OneStep") : text.index("From then on")])
    space = {"Backward": Backward, "BackwardInfo": BackwardInfo, "register": gradients.register}
    exec(code, space)
    return space["OneStep"]


def test_gradients_are_looked_up_by_name():
    phantom = gradients.make("phantom", steps=3, damping=0.5)
    assert type(phantom) is Phantom and (phantom.steps, phantom.damping) == (3, 0.5)
    ift = gradients.make("ift", method="gmres", tol=1e-3)
    assert type(ift) is ImplicitFunction and (ift.method, ift.tol) == ("gmres", 1e-3)
    assert gradients.make(phantom) is phantom
    assert {"phantom", "ift", "bilevel"} <= set(gradients.names())


def test_the_gradient_in_the_documentation_serves_a_layer(cloud, one_step):
    """It is that of one phantom step."""
    transport, x, solver = small_transport(), cloud(3, 6, 2), Anderson(tol=1e-6)
    found = []
    for backward in ("one-step", one_step(), Phantom(steps=1)):
        equilibrium = DDEQ(transport, 4, solver=solver, backward=backward).double()(x)
        assert equilibrium.backward_info.evaluations == 1
        found.append(torch.autograd.grad(equilibrium.particles.square().sum(), list(transport.parameters())))
    for gradient, again, expected in zip(*found, strict=True):
        assert torch.equal(gradient, again) and close(gradient, expected, 1e-12)
    with fails(ValueError, "backward name 'one-step' is taken"):
        gradients.register("one-step", one_step)


@pytest.mark.parametrize(
    ("backward", "text"),
    [
        (Phantom(), "Phantom()"),
        (Phantom(steps=3, damping=0.5), "Phantom(steps=3, damping=0.5)"),
        (ImplicitFunction(method="gmres", tol=1e-3), "ImplicitFunction(method='gmres', tol=0.001)"),
        (Bilevel(kernel=Gaussian(0.5)), None),
    ],
    ids=["phantom", "options", "ift", "bilevel"],
)
def test_what_is_printed_makes_the_same_gradient(backward, text):
    again = eval(repr(backward))
    assert dataclasses.asdict(again) == dataclasses.asdict(backward)
    assert text is None or repr(backward) == text
    assert f"backward={backward!r}" in repr(DDEQ(small_transport(), backward=backward))


def test_options_belong_to_a_name():
    with fails(TypeError, "options steps need a backward given by name, got Phantom"):
        gradients.make(Phantom(), steps=2)
    with fails(TypeError, "backward 'phantom' has no option tol: its options are damping, steps"):
        gradients.make("phantom", tol=2)


@pytest.mark.parametrize(
    ("name", "factory", "error", "message"),
    [
        (None, Phantom, TypeError, "name must be a string, got NoneType"),
        ("mine", 3, TypeError, "factory must make a backward when called, got int"),
        ("ift", Phantom, ValueError, "backward name 'ift' is taken"),
    ],
)
def test_bad_registrations(own_names, name, factory, error, message):
    with fails(error, message):
        gradients.register(name, factory)
