"""The sliced backend: right where it is exact, unbiased, with an honest estimate of its error."""

import math

import pytest
import torch

from ddeq_fast import (
    Gaussian,
    InverseMultiquadric,
    Laplacian,
    Riesz,
    field,
    potential,
    potential_and_field,
    squared_mmd,
)
from ddeq_fast.sums import backends, naive
from ddeq_fast.sums.backends import directions
from ddeq_fast.sums.backends.sliced import Sliced

SMOOTH = [Gaussian(0.7), InverseMultiquadric(0.6)]
CUSPS = [Riesz(0.5), Riesz(1.5), Laplacian(0.8)]
MIXTURE = 0.5 * Riesz(1.0) + 2 * Gaussian(1.1) + -1.0 * Riesz(1.5)


@pytest.fixture
def clouds(cloud):
    """x, y, v with signed charges, padding and coincident points, in dimension d."""

    def draw(d):
        x, y, v = cloud(2, 30, d), cloud(2, 40, d), cloud(80).view(2, 40)
        y[:, :5], v[:, 35:] = x[:, :5], 0
        return x, y, v

    return draw


def normal(d, m=200, n=500):
    """Two clouds of targets, sources and positive charges."""
    generator = torch.Generator().manual_seed(d)
    x, y = (torch.randn(2, k, d, generator=generator, dtype=torch.float64) for k in (m, n))
    return x, y, torch.rand(2, n, generator=generator, dtype=torch.float64)


def rms(found, expected):
    """Root mean square error over the targets of each cloud, of potentials or fields."""
    return (found - expected).reshape(*expected.shape[:2], -1).square().sum(2).mean(1).sqrt()


@pytest.mark.parametrize("kernel", [Riesz(1.0), *SMOOTH, Riesz(1.0) + 3 * Gaussian(0.1)], ids=str)
def test_exact_in_one_dimension(clouds, kernel):
    x, y, v = clouds(1)
    found = potential_and_field(x, y, kernel, charges=v, backend="sliced")
    tolerance = 1e-11 if kernel == Riesz(1.0) else 3e-6
    expected = potential_and_field(x, y, kernel, charges=v, backend="dense")
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("d", "potentials", "fields"), [(2, 1e-5, 2e-3), (3, 2e-4, 5e-3), (4, 5e-4, 8e-3), (10, 4e-3, 5e-2)]
)
def test_few_directions_are_enough(d, potentials, fields):
    """64 of them, in the mean over rotations: a tenth of the error of directions at random."""
    x, y, v = normal(d)
    u, f = naive.evaluate(x, y, v, Riesz(1.0))
    squares = torch.zeros(2, dtype=torch.float64)
    for seed in range(5):
        found = Sliced(64, seed=seed).evaluate(x, y, v, Riesz(1.0), True, True)
        squares += torch.stack([(a - b).norm() / b.norm() for a, b in zip(found, (u, f), strict=True)]).square() / 5
    assert squares[0] < potentials**2 and squares[1] < fields**2


@pytest.mark.parametrize("d", [2, 3, 10])
@pytest.mark.parametrize("kernel", [Riesz(1.0), *SMOOTH, *CUSPS, MIXTURE], ids=str)
def test_errors_lie_within_the_error_bar(kernel, d):
    """Of a standard error, two thirds do if they are normal, nearly all within twice it."""
    x, y, v = normal(d, 60, 150)
    exact = naive.evaluate(x, y, v, kernel)
    ratios = []
    for seed in range(6):
        estimate = Sliced(6, seed=seed).estimate(x, y, v, kernel)
        ratios += [rms(estimate.u, exact[0]) / estimate.u_error, rms(estimate.f, exact[1]) / estimate.f_error]
    ratios = torch.cat(ratios)
    assert (ratios < 2).double().mean() > 0.9 and ratios.max() < 4
    if kernel not in CUSPS:  # whose bars may be too long
        assert (ratios < 1).double().mean() < 0.95 and ratios.square().mean().sqrt() > 0.5


@pytest.mark.parametrize("kernel", [Riesz(1.0), Gaussian(0.7)], ids=str)
@pytest.mark.parametrize("d", [3, 16])
def test_unbiased(clouds, d, kernel):
    """The mean over seeds approaches the exact sums as fast as its own error estimate says."""
    x, y, v = clouds(d)
    exact = potential_and_field(x, y, kernel, charges=v, backend="dense")
    estimates = [Sliced(4, seed=seed).estimate(x, y, v, kernel) for seed in range(12)]
    for i in (0, 1):
        mean = torch.stack([estimate[i] for estimate in estimates]).mean(0)
        expected = torch.stack([estimate[i + 2] for estimate in estimates]).square().mean(0).sqrt() / 12**0.5
        assert (rms(mean, exact[i]) <= 3 * expected).all()  # targets err together: it is one normal number, nearly


@pytest.mark.parametrize("kernel", [Laplacian(1.0), Riesz(0.7), Gaussian(2.0)], ids=str)
def test_points_on_themselves(kernel):
    """A cusp is not smoothed there: alone, a point has the kernel's value at zero."""
    x = torch.tensor([[[0.0, 0.0], [30.0, 40.0]]], dtype=torch.float64)
    v = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    expected = naive.evaluate(x, x, v, kernel)
    for seed in range(3):
        estimate = Sliced(20, seed=seed).estimate(x, x, v, kernel)
        assert (estimate.u - expected[0]).square().mean().sqrt() <= 3 * estimate.u_error


def test_clouds_of_two_scales_have_long_error_bars():
    """What a grid does not see, exact sums at some targets do."""
    x, y, v = normal(2)
    y[:, ::2] *= 1e-5
    x[:, ::2] *= 1e-5
    estimate = Sliced(12).estimate(x, y, v, Riesz(0.5))
    assert (rms(estimate.f, naive.evaluate(x, y, v, Riesz(0.5))[1]) <= 2 * estimate.f_error).all()


def test_error_falls_with_the_directions(clouds):
    x, y, v = clouds(3)
    exact = field(x, y, charges=v, backend="dense")
    few, many = ((Sliced(p).evaluate(x, y, v, Riesz(1.0), False, True)[1] - exact).norm() for p in (30, 1100))
    assert many < 0.25 * few


@pytest.mark.parametrize(
    ("number", "d"), [(1, 3), (3, 3), (40, 3), (7, 2), (1, 1), (5, 1), (20, 6), (8, 30), (1030, 3)]
)
def test_directions(number, d):
    def draw(seed):
        return directions.draw(number, d, torch.Generator().manual_seed(seed))

    theta = draw(0)
    assert theta.shape == (number, d) and torch.equal(theta, draw(0))
    torch.testing.assert_close(theta.norm(dim=1), torch.ones(number, dtype=torch.float64))
    assert d == 1 or not torch.equal(theta, draw(1))
    if d >= number:
        torch.testing.assert_close(theta @ theta.mT, torch.eye(number, dtype=torch.float64), rtol=0, atol=1e-12)
    elif number > 3 * d and d > 1:  # second moments are those of the sphere, nearly
        moments = theta.mT @ theta / number
        assert (moments - torch.eye(d) / d).norm() < 0.03 / math.sqrt(d)


@pytest.mark.parametrize("kernel", [Riesz(1.0), Gaussian(2.0), Laplacian(2.0)], ids=str)
def test_mmd_and_its_gradient(cloud, kernel):
    x, y = cloud(2, 50, 3, grad=True), cloud(2, 60, 3) + 0.5
    monitored = squared_mmd(x, y, kernel, backend="sliced")
    exact = squared_mmd(x, y, kernel, backend="dense")
    assert torch.allclose(monitored, exact, rtol=0.05)
    (found,), (expected,) = (torch.autograd.grad(value.sum(), x, retain_graph=True) for value in (monitored, exact))
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_second_derivatives_of_smooth_kernels(cloud):
    x, y = cloud(2, 20, 3, grad=True), cloud(2, 25, 3, grad=True)
    kernel = Gaussian(2.0) + InverseMultiquadric(2.0)

    def second(backend):
        (slope,) = torch.autograd.grad(potential(x, y, kernel, backend=backend).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, y))

    for found, expected in zip(second("sliced"), second("dense"), strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("kernel", [Riesz(1.0), MIXTURE], ids=str)
def test_the_cloud_on_itself_equals_a_copy(cloud, kernel):
    x, v = cloud(2, 40, 3), cloud(80).view(2, 40)
    same, copy = (Sliced(8).evaluate(x, y, v, kernel, True, True) for y in (x, x.clone()))
    torch.testing.assert_close(same, copy, rtol=1e-3, atol=1e-3 if kernel == MIXTURE else 1e-12)


@pytest.mark.parametrize("kernel", [Riesz(1.0), Gaussian(1.0), Riesz(1.5)], ids=str)
def test_padding_may_lie_anywhere(clouds, kernel):
    x, y, v = clouds(3)
    far = y.clone()
    far[:, 35:] = 1e12
    found, expected = (Sliced(8).evaluate(x, z, v, kernel, True, True) for z in (far, y))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [Riesz(1.0), MIXTURE], ids=str)
def test_clouds_that_are_one_point_or_no_numbers(kernel):
    x = torch.ones(1, 3, 2, dtype=torch.float64)
    v = torch.ones(1, 3, dtype=torch.float64)
    u, f = Sliced(8).evaluate(x, x, v, kernel, True, True)
    torch.testing.assert_close(u, naive.evaluate(x, x, v, kernel)[0], rtol=1e-6, atol=1e-6)
    assert f.abs().max() < 1e-6
    x[0, 0, 0] = torch.inf
    assert not Sliced(8).evaluate(x, x, v, MIXTURE, True, True)[0].isfinite().any()


def test_poor_sums_come_with_a_warning(cloud):
    x = cloud(1, 200, 10)
    with pytest.warns(RuntimeWarning, match=r"^sliced sums of gaussian:0.3 in 10 dimensions are off by more than 10%"):
        potential(x, x, Gaussian(0.3), backend="sliced")


@pytest.mark.filterwarnings("error")
def test_they_are_not_checked_where_that_is_not_wanted(cloud):
    x, v = cloud(1, 200, 10), cloud(1, 200, 1).abs()[..., 0]
    sliced = Sliced(checked=False)
    found = sliced.evaluate(x, x, v, Gaussian(0.3), True, False)
    with pytest.warns(RuntimeWarning, match="^sliced sums of gaussian:0.3 in 10 dimensions are off"):
        sliced.check(found, x, x, v, Gaussian(0.3))


@pytest.mark.parametrize("parts", [2, 9])
@pytest.mark.parametrize("kernel", [Riesz(1.0), MIXTURE, Gaussian(1.5)], ids=str)
def test_shares_add_up(cloud, kernel, parts):
    """Of the directions, of which some of nine processes have none; points on themselves count once."""
    x, v, s, t = cloud(2, 30, 3), cloud(60).view(2, 30), cloud(2, 30, 3), cloud(2, 30, 3)
    whole, shares = Sliced(7, checked=False), [Sliced(7, share=(i, parts)) for i in range(parts)]
    calls = [lambda one: one.evaluate(x, x, v, kernel, True, True)]
    if kernel == Gaussian(1.5):
        calls.append(lambda one: one.tangent(x, x, v, s, t, kernel))
    for call in calls:
        added = [sum(sums) for sums in zip(*map(call, shares), strict=True)]
        torch.testing.assert_close(added, list(call(whole)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("share", "error", "message"),
    [
        ((2, 2), ValueError, r"share must be at most 1, got 2"),
        ((0, 0), ValueError, r"share must be at least 1, got 0"),
        (2, TypeError, r"share must be a pair \(i, k\), got 2"),
    ],
)
def test_no_share(share, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        Sliced(7, share=share)


def test_refusals(cloud):
    x = cloud(2, 3, 2, grad=True)
    with pytest.raises(ValueError, match=r"^backend 'sliced' cannot run this: needs more than one dimension for riesz"):
        potential_and_field(x[..., :1], x[..., :1], Riesz(0.5), backend="sliced")
    for kernel in (Riesz(1.0), Laplacian(1.0)):
        with pytest.raises(ValueError, match=r"^backend 'sliced' has no second derivatives of "):
            field(x, x.detach() + 1, kernel, backend="sliced").sum().backward()
    for kernel in (Gaussian(1e-7), Laplacian(1e-7)):
        with pytest.raises(ValueError, match=r"^backend 'sliced' needs wider kernels or smaller clouds"):
            potential(x, x, kernel, backend="sliced")
    with pytest.raises(ValueError, match=r"^directions must be at least 1, got 0$"):
        Sliced(0)
    assert backends.resolve("auto", x, x, Riesz()) != "sliced"
