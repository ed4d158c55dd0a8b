"""What data sets, removals, jitter and sampling are given is checked, by name."""

import pytest
import torch

from ddeq_fast.clouds import PointClouds
from ddeq_fast.data.augment import jitter
from ddeq_fast.data.dataset import Dataset, Split, generator
from ddeq_fast.data.partial import Clusters, Fraction
from ddeq_fast.data.sampling import sample_surface, to_unit_ball, voxel_grid, voxel_reduce


def parts(number=3, dim=2):
    """(points, weights, labels) of a good split."""
    points = [torch.full((i + 1, dim), float(i)) for i in range(number)]
    return points, [torch.ones(len(cloud)) for cloud in points], torch.arange(number)


def changed(place, value, part):
    result = parts()
    result[part][place] = value
    return result


SPLITS = [
    (changed(1, torch.tensor([[0.0, torch.nan]] * 2), 0), ValueError, r"points\[1\] must be finite, got 2 NaN"),
    (changed(1, torch.zeros(2, 3), 0), ValueError, r"points\[1\] has points in dimension 3 but points\[0\] in 2"),
    (changed(2, torch.zeros(0, 2), 0), ValueError, r"points\[2\] is an empty cloud"),
    (changed(2, torch.zeros(3), 0), ValueError, r"points\[2\] must have shape"),
    (changed(0, torch.zeros(1, 1, 2), 0), ValueError, r"points\[0\] must have shape \(n, d\), got \(1, 1, 2\)"),
    (changed(1, torch.zeros(2, 2).double(), 0), TypeError, r"points\[1\] has dtype torch.float64"),
    (changed(1, [[0.0, 0]] * 2, 0), TypeError, r"points\[1\] must be a torch\.Tensor"),
    (changed(1, torch.ones(3), 1), ValueError, r"weights\[1\] must have shape \(2,\), got \(3,\)"),
    (changed(1, torch.tensor([1, torch.inf]), 1), ValueError, r"weights\[1\] must be finite"),
    (changed(1, torch.tensor([1.0, -1]), 1), ValueError, r"weights\[1\] must be nonnegative, got a minimum of -1"),
    (changed(1, torch.zeros(2), 1), ValueError, r"weights\[1\] leaves no point"),
    (changed(1, None, 1), TypeError, r"weights\[1\] must be a torch\.Tensor, got None"),
    (changed(1, -1, 2), ValueError, r"labels must .* nonnegative"),
    ((*parts()[:2], torch.zeros(3)), TypeError, r"labels must be an int64 tensor, got torch\.float32"),
    ((*parts()[:2], [0, 1, 2]), TypeError, r"labels must be an int64 tensor"),
    ((*parts()[:2], torch.zeros(3, 1).long()), ValueError, r"labels must have shape \(N,\)"),
    ((*parts()[:2], torch.tensor(3)), ValueError, r"labels must have shape \(N,\), got \(\)"),
    ((None, *parts()[1:]), TypeError, r"points must be a sequence of tensors, got NoneType"),
    ((parts()[0], "abc", parts()[2]), TypeError, r"weights must be a sequence of tensors, got str"),
]


@pytest.mark.parametrize("given, error, message", SPLITS)
def test_splits(given, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Split(*given)


def test_a_weight_of_zero_is_padding():
    points, weights, labels = parts()
    weights[1][0] = 0
    batch = Split(points, weights, labels).batch(torch.tensor([1, 2]))
    assert batch.clouds.mask.tolist() == [[False, True, False], [True, True, True]]


@pytest.mark.parametrize(
    "indices, error",
    [
        (torch.tensor([3]), ValueError),
        (torch.tensor([-1]), ValueError),
        (torch.tensor([True, False, True]), TypeError),
        (torch.tensor([0.0]), TypeError),
        (torch.tensor([[0]]), TypeError),
        (torch.tensor([], dtype=torch.int64), ValueError),
        ([0], TypeError),
    ],
)
def test_indices_of_a_batch(indices, error):
    with pytest.raises(error, match=r"^indices must"):
        Split(*parts()).batch(indices)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}, {"epoch": -1}, {"epoch": 1.0}, {"seed": 0.5}])
def test_orders(options):
    with pytest.raises((TypeError, ValueError), match=r"^(batch_size|seed|epoch) must be"):
        Split(*parts()).order(**{"batch_size": 2, **options})


def test_dataset_fits_its_splits():
    good, other = Split(*parts()), Split(*parts(dim=3))
    with pytest.raises(ValueError, match=r"^test must hold points in dimension 2, got 3$"):
        Dataset("a", 2, 3, good, other)
    with pytest.raises(ValueError, match=r"^train must have labels below 2, got 2$"):
        Dataset("a", 2, 2, good, good)
    with pytest.raises(ValueError, match=r"^classes must be at least 1"):
        Dataset("a", 2, 0, good, good)
    with pytest.raises(TypeError, match=r"^test must be a Split, got NoneType$"):
        Dataset("a", 2, 3, good, None)
    with pytest.raises(TypeError, match=r"^name must be a string, got int$"):
        Dataset(1, 2, 3, good, good)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf"), "1"])
def test_strength_of_jitter(strength):
    with pytest.raises((TypeError, ValueError), match=r"^strength must"):
        jitter(PointClouds(torch.zeros(1, 2, 2), torch.ones(1, 2)), strength, generator(0))


def test_clouds_of_jitter_and_removals():
    with pytest.raises(
        ValueError, match=r"^clouds\.points must have shape \(B, n, d\), d at least 2, got \(1, 2, 1\)$"
    ):
        jitter(PointClouds(torch.zeros(1, 2, 1), torch.ones(1, 2)), 0.1, generator(0))
    with pytest.raises(ValueError, match=r"^clouds\.points must have shape \(B, n, d\), got \(2, 2\)$"):
        Fraction()(PointClouds(torch.zeros(2, 2), torch.ones(2)), generator(0))
    with pytest.raises(ValueError, match=r"^clouds without weights must be one, \(n, d\), got \(1, 2, 2\)$"):
        Clusters()(torch.zeros(1, 2, 2), generator(0))


@pytest.mark.parametrize("draw", [None, 0, "0"])
def test_what_draws_is_a_generator(draw):
    clouds = PointClouds(torch.zeros(1, 2, 2), torch.ones(1, 2))
    with pytest.raises(TypeError, match=r"^generator must be a torch\.Generator, got "):
        jitter(clouds, 0.1, draw)
    with pytest.raises(TypeError, match=r"^draw must be a torch\.Generator, got "):
        Fraction()(clouds, draw)
    with pytest.raises(TypeError, match=r"^draw must be a torch\.Generator, got "):
        sample_surface(torch.eye(3), torch.tensor([[0, 1, 2]]), 5, draw)


def test_clusters_in_half_precision():
    """Squares of distances beyond 256 are infinite there."""
    points = torch.tensor([[0.0, 0], [300, 0], [0, 1000]])
    removal = Clusters(count=1, radius=400)
    for seed in range(4):
        expected = removal(points, generator(seed))
        assert torch.equal(removal(points.half(), generator(seed)), expected) and expected.sum() in (1, 2)


def test_sampling_in_half_precision_and_any_units():
    points = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0))
    single, half = voxel_grid(points.half().float(), 1 / 300), voxel_grid(points.half(), 1 / 300)
    assert torch.equal(half, single.half())
    assert 30 <= len(voxel_reduce(points * 3e38, 30, 40)) <= 40
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(to_unit_ball(points * scale), to_unit_ball(points), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"^size is too small"):
        voxel_grid(points, 1e-320)


@pytest.mark.parametrize("corner", [-1, 3])
def test_triangles_name_vertices(corner):
    with pytest.raises(ValueError, match=r"^triangles must name vertices from 0 to 2, got"):
        sample_surface(torch.eye(3), torch.tensor([[0, 1, corner]]), 5, generator(0))
