"""Random changes of training clouds."""

import pytest
import torch

from ddeq_fast.clouds import PointClouds
from ddeq_fast.data.augment import add_noise, draw_points, jitter, rotate, scale
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


def padded(cloud, dim=3):
    """Clouds of 9, 4 and 7 points; padding is not zero."""
    points, weights = cloud(3, 9, dim, dtype=torch.float32), torch.ones(3, 9)
    weights[1, 4:], weights[2, 7:] = 0, 0
    return PointClouds(points, weights)


CHANGES = {
    "axis": lambda clouds, draw: rotate(clouds, "axis", draw),
    "all": lambda clouds, draw: rotate(clouds, "all", draw),
    "scale": lambda clouds, draw: scale(clouds, 0.3, draw),
    "noise": lambda clouds, draw: add_noise(clouds, 0.2, draw),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_reproducible_and_leave_padding_and_weights(cloud, change):
    clouds = padded(cloud)
    before = clouds.points.clone()
    moved, again, other = (change(clouds, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(moved.points, again.points) and torch.equal(moved.weights, clouds.weights)
    assert torch.equal(moved.points[~clouds.mask], clouds.points[~clouds.mask])
    assert torch.equal(clouds.points, before) and moved.points.dtype == torch.float32
    for changed in (other.points, clouds.points):
        assert ((moved.points - changed).norm(dim=2).mean(1) > 1e-4).all()


def turns(clouds, moved):
    """The matrices (B, d, d) that took the clouds to where they are."""
    return torch.linalg.lstsq(clouds.points.double(), moved.points.double()).solution.mT


@pytest.mark.parametrize(("rotation", "dim"), [("axis", 3), ("all", 2), ("all", 3), ("all", 4)])
def test_rotations_keep_distances_and_handedness(cloud, rotation, dim):
    clouds = PointClouds(cloud(20, 9, dim, dtype=torch.float32), torch.ones(20, 9))
    moved = rotate(clouds, rotation, generator(0))
    torch.testing.assert_close(*(torch.cdist(c.points, c.points) for c in (moved, clouds)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.points.norm(dim=2), clouds.points.norm(dim=2), rtol=1e-4, atol=1e-4)
    assert ((torch.linalg.det(turns(clouds, moved)) - 1).abs() < 1e-4).all()
    if rotation == "axis":
        assert torch.equal(moved.points[..., 2], clouds.points[..., 2])


def test_rotations_are_uniform():
    """Of 20,000: means within five deviations of the Haar distribution's own, and angles of all sizes."""
    number = 20000
    basis = PointClouds(torch.eye(3).expand(number, 3, 3), torch.ones(number, 3))
    moved = rotate(basis, "all", generator(1)).points.double()
    # E R = 0, E R_ij^2 = 1/3 with deviation sqrt(4/45), and rows are independent of where they came from.
    assert (moved.mean(0).abs() < 5 * (1 / 3 / number) ** 0.5).all()
    assert ((moved.square().mean(0) - 1 / 3).abs() < 5 * (4 / 45 / number) ** 0.5).all()
    # The angle of a uniform rotation has density (1 - cos) / pi: its cosine has the mean -1/2, its square 1/2.
    cosine = (moved.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    assert abs(cosine.mean() + 0.5) < 5 * (1 / 4 / number) ** 0.5
    assert abs(cosine.square().mean() - 0.5) < 5 * (1 / number) ** 0.5
    plane = rotate(basis, "axis", generator(2)).points[:, 0, :2]
    angles = torch.atan2(plane[:, 1], plane[:, 0])
    counts = torch.histc(angles, 8, -torch.pi, torch.pi)
    assert ((counts - number / 8).abs() < 5 * (number * 7 / 64) ** 0.5).all()


def test_a_cloud_has_one_factor_between_the_bounds(cloud):
    clouds = PointClouds(cloud(2000, 5, 3, dtype=torch.float32), torch.ones(2000, 5))
    moved = scale(clouds, 0.3, generator(0))
    factors = moved.points.norm(dim=(1, 2)) / clouds.points.norm(dim=(1, 2))
    torch.testing.assert_close(moved.points, clouds.points * factors[:, None, None], rtol=1e-4, atol=1e-5)
    assert 0.699 < factors.min() < 0.71 and 1.29 < factors.max() < 1.301
    assert abs(factors.mean() - 1) < 5 * 0.3 / (3 * 2000) ** 0.5


def test_noise_has_its_deviation_in_every_point_of_its_own(cloud):
    clouds = PointClouds(torch.zeros(50, 100, 3), torch.ones(50, 100))
    noise = add_noise(clouds, 0.2, generator(0)).points
    assert abs(noise.mean()) < 5 * 0.2 / 15000**0.5
    assert abs(noise.std() - 0.2) < 5 * 0.2 / (2 * 15000) ** 0.5
    correlation = (noise[:, :-1] * noise[:, 1:]).mean() / 0.04
    assert abs(correlation) < 5 / 15000**0.5


def test_no_scaling_and_no_noise_change_nothing(cloud):
    clouds = padded(cloud)
    assert torch.equal(scale(clouds, 0.0, generator(0)).points, clouds.points)
    assert torch.equal(add_noise(clouds, 0.0, generator(0)).points, clouds.points)


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        (rotate, "z", r"^rotation must be one of all, axis; got 'z'$"),
        (rotate, None, r"^rotation must be one of all, axis; got None$"),
        (scale, 1.0, r"^strength must lie in \[0, 1\), got 1\.0$"),
        (scale, -0.1, r"^strength must lie in \[0, 1\), got -0\.1$"),
        (scale, "1", r"^strength must be a number, got str$"),
        (add_noise, -0.1, r"^deviation must lie in \[0, inf\), got -0\.1$"),
        (add_noise, float("nan"), r"^deviation must lie in \[0, inf\), got nan$"),
    ],
)
def test_bad_sizes_of_changes(cloud, function, value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        function(padded(cloud), value, generator(0))


@pytest.mark.parametrize(("function", "value"), [(rotate, "all"), (scale, 0.1), (add_noise, 0.1)])
def test_bad_clouds_and_generators_of_changes(cloud, function, value):
    clouds = padded(cloud)
    with pytest.raises(TypeError, match=r"^generator must be a torch\.Generator, got NoneType$"):
        function(clouds, value, None)
    with pytest.raises(TypeError, match=r"^clouds must be a pair \(points, weights\)"):
        function(clouds.points, value, generator(0))
    with pytest.raises(ValueError, match=r"^clouds\.points must be finite"):
        function(clouds._replace(points=clouds.points / 0), value, generator(0))
    with pytest.raises(ValueError, match=r"^clouds\.weights must have shape \(3, 9\)"):
        function(clouds._replace(weights=torch.ones(3, 8)), value, generator(0))


def test_dimensions_that_cannot_be_turned(cloud):
    with pytest.raises(ValueError, match=r"^rotation must be 'all' of clouds in dimension 2, 'axis' is about one of"):
        rotate(padded(cloud, 2), "axis", generator(0))
    with pytest.raises(ValueError, match=r"^clouds\.points must have shape \(B, n, d\), d at least 2"):
        rotate(padded(cloud, 1), "all", generator(0))


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
