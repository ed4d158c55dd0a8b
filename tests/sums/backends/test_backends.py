"""The registry of backends: adding one, choosing one, and refusals."""

import pytest
import torch

from ddeq_fast import potential_and_field, squared_mmd
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import dense, registry
from ddeq_fast.sums.radial import Riesz

X, Y = torch.zeros(4, 3), torch.ones(5, 3)


class Recorder:
    """The dense sums, writing down which were asked for."""

    def __init__(self, reason=None):
        self.reason, self.calls = reason, []

    def unsupported(self, x, y, kernel):
        return self.reason

    def evaluate(self, x, y, v, kernel, potential, field):
        self.calls.append("evaluate")
        return dense.evaluate(x, y, v, kernel, potential, field)

    def tangent(self, *arguments):
        self.calls.append("tangent")
        return dense.tangent(*arguments)


@pytest.fixture(autouse=True)
def copied_registry(monkeypatch):
    """A copy of the registry for each test."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def test_a_registered_backend_is_used_when_named():
    mine = Recorder()
    backends.register("mine", mine)
    x = X.clone().requires_grad_()
    u, f = potential_and_field(x, Y, backend="mine")
    assert mine.calls == ["evaluate"]
    (u.sum() + f.sum()).backward()
    assert mine.calls.count("tangent") == 1 and mine.calls.count("evaluate") == 2
    torch.testing.assert_close(u, potential_and_field(X, Y, backend="dense")[0], rtol=0, atol=0)


def test_energy_takes_one_pass_for_value_and_gradient():
    mine = Recorder()
    backends.register("mine", mine)
    x = torch.rand(4, 3, requires_grad=True)
    squared_mmd(x, Y, backend="mine").backward()
    assert mine.calls == ["evaluate"]


def test_auto_follows_preference_and_support():
    last, first, refusing = Recorder(), Recorder(), Recorder("of no reason")
    backends.register("last", last)
    assert backends.names()[-1] == "last" and backends.resolve("auto", X, Y, Riesz()) != "last"
    backends.register("first", first, prefer=True)
    assert backends.resolve("auto", X, Y, Riesz()) == "first"
    backends.register("refusing", refusing, prefer=True)
    assert backends.names()[:2] == ["refusing", "first"]
    squared_mmd(X, Y)
    assert first.calls == ["evaluate"] and refusing.calls == []


def test_names_is_a_copy():
    backends.names().clear()
    assert "dense" in backends.names()


def test_a_refusal_gives_its_reason():
    backends.register("refusing", Recorder("needs d <= 2, got d = 3"))
    with pytest.raises(ValueError, match=r"^backend 'refusing' cannot run this: needs d <= 2, got d = 3$"):
        squared_mmd(X, Y, backend="refusing")


@pytest.mark.parametrize("name", ["auto", "dense"])
def test_a_name_is_given_once(name):
    with pytest.raises(ValueError, match=rf"^backend name '{name}' is taken$"):
        backends.register(name, Recorder())


def test_unknown_backend():
    listed = ", ".join(["auto", *backends.names()])
    for call in (potential_and_field, squared_mmd):
        with pytest.raises(ValueError, match=rf"^backend must be one of {listed}; got 'fast'$"):
            call(X, Y, backend="fast")


@pytest.mark.parametrize("bad, got", [(None, "NoneType"), (["dense"], "list"), (dense, "module")])
def test_backend_of_the_wrong_type(bad, got):
    with pytest.raises(TypeError, match=rf"^backend must be a string, got {got}$"):
        squared_mmd(X, Y, backend=bad)
