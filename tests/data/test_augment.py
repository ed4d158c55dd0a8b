"""Random changes of training clouds."""

import pytest
import torch

from ddeq_fast.clouds import PointClouds
from ddeq_fast.data.augment import draw_points, jitter
from ddeq_fast.data.dataset import generator


def test_jitter_moves_real_points_of_the_plane_affinely(cloud):
    points, weights = cloud(4, 9, 3, dtype=torch.float32), torch.ones(4, 9)
    points[2, 6:], weights[2, 6:] = 0, 0
    moved = jitter(PointClouds(points, weights), 0.1, generator(0))
    assert torch.equal(moved.points[..., 2], points[..., 2]) and torch.equal(moved.weights, weights)
    assert (moved.points[2, 6:] == 0).all() and not torch.allclose(moved.points[0], points[0], atol=1e-3)
    plane = torch.cat((points[0, :, :2], torch.ones(9, 1)), 1)
    fitted = plane @ torch.linalg.lstsq(plane, moved.points[0, :, :2]).solution
    torch.testing.assert_close(fitted, moved.points[0, :, :2], rtol=1e-4, atol=1e-4)


def test_jitter_is_reproducible_and_vanishes_with_its_strength(cloud):
    clouds = PointClouds(cloud(3, 5, 2, dtype=torch.float32), torch.ones(3, 5))
    assert torch.equal(jitter(clouds, 0.2, generator(3)).points, jitter(clouds, 0.2, generator(3)).points)
    torch.testing.assert_close(jitter(clouds, 0.0, generator(3)).points, clouds.points, rtol=0, atol=0)


def numbered(sizes, most):
    """Clouds whose points are their own numbers, with weights that tell of them too; padding is NaN-free and zero."""
    points, weights = torch.zeros(len(sizes), most, 2), torch.zeros(len(sizes), most)
    for row, size in enumerate(sizes):
        points[row, :size, 0] = torch.arange(size).float()
        weights[row, :size] = 1 + torch.arange(size)
    return PointClouds(points, weights)


def test_drawn_points_are_different_ones_of_the_cloud_in_their_order():
    clouds = numbered([20, 3, 8], 20)
    drawn = draw_points(clouds, 8, generator(0))
    assert drawn.points.shape == (3, 8, 2) and drawn.mask.sum(1).tolist() == [8, 3, 8]
    for row in range(3):
        numbers = drawn.points[row, drawn.mask[row], 0]
        assert (numbers.diff() > 0).all()
        assert torch.equal(drawn.weights[row, drawn.mask[row]], 1 + numbers)


def test_every_point_is_drawn_equally_often():
    clouds = numbered([10] * 4000, 12)
    counts = draw_points(clouds, 4, generator(1)).points[..., 0].long().flatten().bincount(minlength=10)
    # 4,000 clouds with chance 0.4: a standard deviation of 31
    assert ((counts - 1600).abs() < 5 * 31).all()


def test_smaller_clouds_stay_as_they_are():
    clouds = numbered([5, 2], 5)
    for most in (5, 9):
        same = draw_points(clouds, most, generator(0))
        assert torch.equal(same.points, clouds.points) and torch.equal(same.weights, clouds.weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"most": 0}, r"^most must be at least 1, got 0$"),
        ({"most": 2.0}, r"^most must be an integer"),
        ({"clouds": torch.zeros(2, 2)}, r"^clouds must be"),
        ({"clouds": PointClouds(torch.zeros(2, 2), torch.ones(2))}, r"^clouds\.points must have shape \(B, n, d\)"),
        ({"generator": None}, r"^generator must be a torch\.Generator, got NoneType$"),
    ],
)
def test_bad_requests_of_draw_points(change, message):
    given = {"clouds": numbered([3, 4], 4), "most": 2, "generator": generator(0)} | change
    with pytest.raises((TypeError, ValueError), match=message):
        draw_points(**given)
