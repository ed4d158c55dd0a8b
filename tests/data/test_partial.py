"""Partial clouds: what is removed, what always stays, and that draws depend on the generator alone."""

import pytest
import torch

from ddeq_fast.clouds import PointClouds, pad
from ddeq_fast.data.dataset import generator
from ddeq_fast.data.partial import REMOVALS, Clusters, Fraction

BOTH = pytest.mark.parametrize("removal", [Clusters(2, 0.5), Fraction(0.4)])


@pytest.fixture
def ragged(cloud):
    return [cloud(n, 2, dtype=torch.float32) for n in (40, 1, 17, 60, 2)]


def test_clusters_are_balls_around_points_of_the_cloud(ragged):
    """Whatever is removed is a union of balls: the centres can be found again among the removed points."""
    clouds = pad(ragged)
    radius = 0.3
    one = Clusters(1, radius)(clouds, generator(0))
    two = Clusters(2, radius)(clouds, generator(0))
    for points, got_one, got_two in zip(ragged, one, two, strict=True):
        n = len(points)
        near = torch.cdist(points.double(), points.double()) <= radius
        assert not got_one[n:].any() and not got_two[n:].any()
        if n > 2:
            assert (near == ~got_one[:n]).all(1).any()
            assert any(torch.equal(near[i] | near[j], ~got_two[:n]) for i in range(n) for j in range(n))


def test_every_point_is_a_centre_equally_often():
    """1,000 clouds of 5 distant points, one centre each; binomial deviation is 13."""
    points = 10 * torch.arange(5.0)[:, None]
    clouds = PointClouds(torch.zeros(1000, 7, 1), torch.zeros(1000, 7))
    clouds.points[:, 2:], clouds.weights[:, 2:] = points, 1.0
    removed = (~Clusters(1, 1.0)(clouds, generator(3)))[:, 2:]
    assert (removed.sum(1) == 1).all()
    assert (removed.sum(0) - 200).abs().max() < 60


def test_pixels_at_exactly_the_radius_are_all_removed():
    axis = (torch.arange(28.0) - 13.5) / 5
    grid = torch.cartesian_prod(axis, axis)
    whole = 0
    for seed in range(50):
        observed = Clusters(1, 0.6)(grid, generator(seed))
        inside = (~observed).view(28, 28).nonzero()
        if inside.min() > 0 and inside.max() < 27:  # not cut by the border
            assert len(inside) == 29
            whole += 1
    assert whole > 10


def test_a_fraction_is_removed_of_every_cloud(ragged):
    observed = Fraction(0.4)(pad(ragged), generator(0))
    assert observed.sum(1).tolist() == [24, 1, 10, 36, 1]
    assert [row[len(points) :].any().item() for row, points in zip(observed, ragged, strict=True)] == [False] * 5


def test_one_point_always_stays(ragged):
    clouds = pad([*ragged, torch.zeros(6, 2)])
    for removal in (Clusters(3, 100.0), Fraction(0.999)):
        observed = removal(clouds, generator(0))
        assert (observed.sum(1) == 1).all() and (observed & ~clouds.mask).sum() == 0


def test_the_point_that_stays_is_far_from_the_centre():
    points = torch.tensor([[0.0], [0.1], [5.0], [0.2]])
    for seed in range(8):
        observed = Clusters(1, 9.0)(points, generator(seed))
        assert observed.tolist() in ([False, False, True, False], [True, False, False, False])


@BOTH
def test_padding_changes_nothing(ragged, removal):
    clouds = pad(ragged)
    wide = PointClouds(*(torch.nn.functional.pad(t, (0, 0) * (t.dim() - 2) + (0, 37)) for t in clouds))
    assert wide.points.shape[1] == 97
    narrow, far = removal(clouds, generator(4)), removal(wide, generator(4))
    assert torch.equal(narrow, far[:, :60]) and not far[:, 60:].any()
    # Padding in front, too: weights say what is real.
    shifted = PointClouds(wide.points.roll(37, 1), wide.weights.roll(37, 1))
    assert torch.equal(removal(shifted, generator(4)), far.roll(37, 1))


@BOTH
def test_masks_depend_on_the_generator_alone(ragged, removal):
    clouds = pad(ragged)
    torch.manual_seed(1)
    first = removal(clouds, generator(0, 7))
    torch.manual_seed(2)
    assert torch.equal(removal(clouds, generator(0, 7)), first)
    assert not torch.equal(removal(clouds, generator(0, 8)), first)
    draw = generator(0, 7)
    assert not torch.equal(removal(clouds, draw), removal(clouds, draw))


@BOTH
def test_a_cloud_alone_is_a_batch_of_one(ragged, removal):
    for points in ragged:
        alone = removal(points, generator(5))
        assert alone.shape == (len(points),) and torch.equal(alone, removal(pad([points]), generator(5))[0])


def test_bad_arguments(ragged):
    assert REMOVALS["clusters"] is Clusters and REMOVALS["fraction"] is Fraction
    for share in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"^share must lie in \(0, 1\), got"):
            Fraction(share)
    with pytest.raises(TypeError, match=r"^share must be a number, got str$"):
        Fraction("half")
    with pytest.raises(ValueError, match=r"^radius must lie in \(0, inf\), got 0$"):
        Clusters(radius=0)
    with pytest.raises(ValueError, match=r"^count must be at least 1, got 0$"):
        Clusters(count=0)
    clouds = pad(ragged)
    with pytest.raises(ValueError, match=r"^clouds\.weights leaves no point in cloud 2 of the batch$"):
        Clusters()(PointClouds(clouds.points, clouds.weights * (torch.arange(5) != 2)[:, None]), generator(0))
    with pytest.raises(ValueError, match=r"^clouds must be finite"):
        Fraction()(torch.full((3, 2), torch.nan), generator(0))
