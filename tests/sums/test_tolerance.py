"""Sums to a tolerance: which backend carries them out, how far they are off, and what is refused."""

import pytest
import torch

from ddeq_fast import Gaussian, Riesz, field, potential, potential_and_field, squared_mmd, wasserstein_gradient, witness
from ddeq_fast.commands.main import main
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import tree
from ddeq_fast.sums.certify import certified_error


@pytest.fixture
def trees(monkeypatch):
    """Trees pay for small clouds too; names of the sums that they were asked for."""
    pytest.importorskip("ferreus_bbfmm")
    fmm, calls = tree._fmm, []
    monkeypatch.setattr(tree, "_pays", lambda x, y, kernel: True)
    monkeypatch.setattr(tree, "_fmm", lambda *args: calls.append(args[0]) or fmm(*args))
    return calls


def relative(found, exact):
    return float((found - exact).norm() / exact.norm())


def test_auto_takes_trees_where_they_are_cheaper(trees, cloud):
    x, y = cloud(900, 2), cloud(1000, 2)
    exact = potential_and_field(x, y)
    assert not trees
    loose, tight = (potential_and_field(x, y, tolerance=t) for t in (1e-2, 1e-6))
    assert len(trees) >= 2
    for a, b, c in zip(loose, tight, exact, strict=True):
        assert relative(a, c) <= 1e-2 and relative(b, c) <= 1e-6 and relative(b, c) < relative(a, c)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y, **options: potential(x, y, **options),
        lambda x, y, **options: field(x, y, **options),
        lambda x, y, **options: squared_mmd(x, y, **options),
        lambda x, y, **options: witness(x, x, y, **options),
        lambda x, y, **options: wasserstein_gradient(x, y, **options),
    ],
    ids=["potential", "field", "squared_mmd", "witness", "wasserstein_gradient"],
)
def test_every_sum_has_a_tolerance_and_its_gradient_too(trees, cloud, call):
    x, y = cloud(400, 2, grad=True), cloud(500, 2) + 1
    values = [call(x, y, kernel=Gaussian(1.0), tolerance=t) for t in (1e-5, None)]
    assert trees and relative(*values) <= 1e-3
    if call(x[:3], y[:3]).dim() < 2:  # second derivatives are exact
        found, expected = (torch.autograd.grad(value.sum(), x)[0] for value in values)
        assert relative(found, expected) <= 1e-3


def test_auto_is_exact_where_trees_cannot(trees, cloud):
    for x, kernel, tolerance in (
        (cloud(9, 4), Riesz(1.0), 0.1),
        (cloud(9, 2), Riesz(0.5), 0.1),
        (cloud(9, 2), None, 1e-9),
    ):
        found, exact = (potential(x, x, kernel, tolerance=t) for t in (tolerance, None))
        assert torch.equal(found, exact) and not trees


def test_auto_is_exact_where_that_is_faster(cloud):
    x = cloud(1, 50, 2)
    assert backends.resolve("auto@0.01", x, x, Riesz(1.0)) == backends.resolve("auto", x, x, Riesz(1.0))


def test_named_backends(trees, cloud):
    x = cloud(800, 2)
    assert torch.equal(potential(x, x, backend="dense", tolerance=0.1), potential(x, x, backend="dense"))
    same = [potential(x, x, backend=name, tolerance=t) for name, t in (("tree@1e-6", None), ("tree", 1e-6))]
    torch.testing.assert_close(*same, rtol=1e-9, atol=0)
    assert backends.get("tree@0.5").tolerance < 0.1 < 0.5
    message = r"^backend 'sliced' promises no tolerance, got 0.01$"
    with pytest.raises(ValueError, match=message):
        potential(x, x, backend="sliced", tolerance=0.01)
    with pytest.raises(ValueError, match=r"^backend 'triton-tf32' promises no tolerance"):
        backends.get("triton-tf32@0.01")
    with pytest.raises(ValueError, match=r"^tolerance must lie in \(1e-07, 0.1\), got 1e-09$"):
        potential(x, x, backend="tree", tolerance=1e-9)


@pytest.mark.parametrize(
    ("backend", "tolerance", "error", "message"),
    [
        ("auto", 1.0, ValueError, r"tolerance must lie in \(0, 1\), got 1.0"),
        ("auto", "1e-3", TypeError, "tolerance must be a number, got str"),
        ("auto@1e-3", 1e-3, ValueError, "tolerance must be None where backend has one, got 0.001 and 'auto@1e-3'"),
        ("auto@much", None, ValueError, r"tolerance of backend must be a number in \(0, 1\), got 'auto@much'"),
        ("dense@", None, ValueError, r"tolerance of backend must be a number in \(0, 1\), got 'dense@'"),
        ("nonsense@0.1", None, ValueError, "backend must be one of auto, "),
        (3, 0.1, TypeError, "backend must be a string, got int"),
    ],
)
def test_refusals(backend, tolerance, error, message, cloud):
    with pytest.raises(error, match=f"^{message}"):
        squared_mmd(cloud(3, 2), cloud(3, 2), backend=backend, tolerance=tolerance)


@pytest.mark.parametrize("shape", [(300, 3), (2, 300, 3)], ids=str)
def test_certified_errors(cloud, shape):
    x, y = cloud(*shape), cloud(*shape)
    for exact in potential_and_field(x, y):
        assert certified_error(exact, x, y).shape == shape[:-2]
        assert certified_error(exact, x, y).max() < 1e-12
        for samples in (50, 1000):
            found = certified_error(1.01 * exact, x, y, samples=samples)
            torch.testing.assert_close(found, torch.full_like(found, 0.01))
    assert not certified_error(0 * exact, x, y, charges=torch.zeros(shape[:-1], dtype=x.dtype)).any()
    assert (certified_error(exact, x, y, charges=torch.zeros(shape[:-1], dtype=x.dtype)) == torch.inf).all()


def test_certified_error_refuses(cloud):
    x = cloud(3, 2)
    with pytest.raises(ValueError, match=r"^found must have shape \(3,\) or \(3, 2\), got \(2,\)$"):
        certified_error(x[0], x, x)
    with pytest.raises(TypeError, match=r"^found must be a tensor, got float$"):
        certified_error(1.0, x, x)
    with pytest.raises(ValueError, match=r"^samples must be at least 1, got 0$"):
        certified_error(x, x, x, samples=0)
    with pytest.raises(ValueError, match=r"^certified_error has no derivative"):
        torch.func.grad(lambda z: certified_error(z, x, x))(x)


def test_explain_says_what_a_tolerance_is_worth(capsys):
    pytest.importorskip("ferreus_bbfmm")
    for options, taken in (([], "compiled"), (["--tolerance", "1e-3"], "tree")):
        assert main(["explain", "--n", "1000000", "--d", "3", *options]) == 0
        text = capsys.readouterr().out
        assert f'"auto" takes {taken}: ' in text and f"\n{taken} *" in text
    assert main(["explain", "--n", "5", "--d", "3", "--tolerance", "2"]) == 2
    assert "tolerance must lie in (0, 1), got 2.0" in capsys.readouterr().err
