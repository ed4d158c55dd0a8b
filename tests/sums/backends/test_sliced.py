"""The sliced backend: exact in one dimension, unbiased in more, with an honest estimate of its error."""

import pytest
import torch

from ddeq_fast import Gaussian, Riesz, field, potential_and_field, squared_mmd
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends.sliced import Sliced


@pytest.fixture
def clouds(cloud):
    """x, y, v with signed charges, padding and coincident points, in dimension d."""

    def draw(d):
        x, y, v = cloud(2, 30, d), cloud(2, 40, d), cloud(80).view(2, 40)
        y[:, :5], v[:, 35:] = x[:, :5], 0
        return x, y, v

    return draw


def test_exact_in_one_dimension(clouds):
    x, y, v = clouds(1)
    found = potential_and_field(x, y, charges=v, backend="sliced")
    torch.testing.assert_close(found, potential_and_field(x, y, charges=v, backend="dense"), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["random", "orthogonal"])
@pytest.mark.parametrize("d", [2, 3, 16])
def test_unbiased(clouds, kind, d):
    """The mean over seeds approaches the exact sums as fast as its own error estimate says."""
    x, y, v = clouds(d)
    u, f = potential_and_field(x, y, charges=v, backend="dense")
    estimates = [Sliced(16, kind=kind, seed=seed).estimate(x, y, v) for seed in range(60)]
    for value, found, error in ((u, [e.u for e in estimates], "u_error"), (f, [e.f for e in estimates], "f_error")):
        mean = torch.stack(found).mean(0)
        off = (mean - value).square().reshape(2, x.shape[1], -1).sum(2).mean(1).sqrt()
        expected = torch.stack([getattr(e, error) for e in estimates]).square().mean(0).sqrt() / 60**0.5
        assert (off <= 2 * expected).all()


def test_the_error_estimate_is_of_the_right_size(clouds):
    x, y, v = clouds(3)
    u, f = potential_and_field(x, y, charges=v, backend="dense")
    ratios = []
    for seed in range(40):
        estimate = Sliced(32, kind="random", seed=seed).estimate(x, y, v)
        ratios.append((estimate.u - u).square().mean(1) / estimate.u_error.square())
        ratios.append((estimate.f - f).square().sum(2).mean(1) / estimate.f_error.square())
    assert 0.6 < torch.cat(ratios).mean() < 1.6


def test_error_falls_with_the_directions(clouds):
    x, y, v = clouds(3)
    exact = field(x, y, charges=v, backend="dense")
    few, many = ((Sliced(p).evaluate(x, y, v, Riesz(1.0), False, True)[1] - exact).norm() for p in (30, 3000))
    assert many < 0.25 * few


def test_directions(monkeypatch):
    frames = Sliced(7, seed=3).draw(3)
    assert frames.shape == (7, 3)
    torch.testing.assert_close(frames[:3] @ frames[:3].mT, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(frames, Sliced(7, seed=3).draw(3)) and not torch.equal(frames, Sliced(7, seed=4).draw(3))


def test_mmd_and_its_gradient(cloud):
    x, y = cloud(2, 50, 3, grad=True), cloud(2, 60, 3) + 0.5
    monitored = squared_mmd(x, y, backend="sliced")
    exact = squared_mmd(x, y, backend="dense")
    assert torch.allclose(monitored, exact, rtol=0.2)
    (found,), (expected,) = (torch.autograd.grad(value.sum(), x, retain_graph=True) for value in (monitored, exact))
    assert (found - expected).norm() < 0.3 * expected.norm()


def test_the_cloud_on_itself_equals_a_copy(cloud):
    x, v = cloud(2, 40, 3), cloud(80).view(2, 40)
    same, copy = (Sliced(8).evaluate(x, y, v, Riesz(1.0), True, True) for y in (x, x.clone()))
    torch.testing.assert_close(same, copy, rtol=1e-12, atol=1e-12)


def test_refusals(cloud):
    x = cloud(2, 3, 2, grad=True)
    with pytest.raises(ValueError, match=r"^backend 'sliced' cannot run this: needs Riesz\(1\), up to a factor"):
        potential_and_field(x, x, Gaussian(1.0), backend="sliced")
    with pytest.raises(ValueError, match=r"needs Riesz\(1\)"):
        potential_and_field(x, x, Riesz(0.5), backend="sliced")
    with pytest.raises(ValueError, match=r"^backend 'sliced' has no second derivatives"):
        field(x, x.detach() + 1, backend="sliced").sum().backward()
    with pytest.raises(ValueError, match=r"^directions must be at least 1, got 0$"):
        Sliced(0)
    with pytest.raises(ValueError, match=r"^kind must be one of orthogonal, random; got 'sobol'$"):
        Sliced(kind="sobol")
    with pytest.raises(ValueError, match=r"^directions must be at least 2 for an estimate of the error, got 1$"):
        Sliced(1).estimate(x, x, x[..., 0])
    assert backends.resolve("auto", x, x, Riesz()) != "sliced"
