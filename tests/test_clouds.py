"""Padding and normalisation of clouds."""

import pytest
import torch

from ddeq_fast.clouds import PointClouds, compact, normalise, pad, spread_normal
from references import golden

GOLDEN = golden("misc")


def test_pad_keeps_points_and_marks_padding(cloud):
    clouds = [cloud(n, 3) for n in (4, 1, 6)]
    batch = pad(clouds)
    assert batch.points.shape == (3, 6, 3) and batch.weights.shape == (3, 6)
    for points, weights, original in zip(*batch, clouds, strict=True):
        assert torch.equal(points[weights > 0], original)
        assert (points[weights == 0] == 0).all() and (weights[: len(original)] == 1).all()
    assert torch.equal(batch.mask, batch.weights > 0)


def test_pad_with_weights(cloud):
    clouds, weights = [cloud(5, 2), cloud(3, 2)], [torch.rand(5).double() + 0.1, torch.rand(3).double() + 0.1]
    batch = pad(clouds, weights)
    assert batch.points.shape == (2, 5, 2)
    assert torch.equal(batch.weights[1, :3], weights[1]) and (batch.weights[1, 3:] == 0).all()
    assert batch.to(torch.float32).points.dtype == torch.float32
    masks = [torch.tensor([True, False, True, True, False]), torch.ones(3) > 0]
    assert torch.equal(pad(clouds, masks).mask, torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 0, 0]]) > 0)


@pytest.mark.parametrize("function", [normalise, compact])
def test_masks_are_weights(cloud, function):
    points, weights = cloud(2, 5, 3), torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 0, 1, 1]]).double()
    expected = function(points, weights)
    for found in (
        function(points, weights > 0),
        function(points, mask=weights > 0),
        function(points, torch.ones_like(weights), mask=weights > 0),
    ):
        assert all(map(torch.equal, found, expected))


def test_normalise_matches_the_original_implementation():
    raw = [torch.tensor(GOLDEN[f"normalize/raw{i}"]) for i in range(3)]
    result = normalise(*pad(raw))
    torch.testing.assert_close(result, torch.tensor(GOLDEN["normalize/batch"]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalised_clouds_have_unit_deviation_whatever_their_padding_holds(cloud, dtype):
    points = (cloud(2, 9, 3) * torch.tensor([0.01, 1.0, 50.0]) + 20).to(dtype)
    weights = torch.ones(2, 9, dtype=dtype)
    weights[1, 5:] = 0
    points[1, 5:] = 1e6
    result = normalise(points, weights)
    assert (result[1, 5:] == 0).all()
    for row, count in ((0, 9), (1, 5)):
        real = result[row, :count].double()
        torch.testing.assert_close(real.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-4)
        torch.testing.assert_close(real.std(0, correction=0), torch.ones(3).double(), rtol=1e-3, atol=0)


def test_a_constant_coordinate_is_only_centred():
    points = torch.rand(7, 2)
    points[:, 1] = 0.1
    assert normalise(points)[:, 1].abs().max() < 1e-6


def test_unbatched_equals_batched(cloud):
    points = cloud(6, 2)
    assert torch.equal(normalise(points), normalise(points[None])[0])


@pytest.mark.parametrize(
    "clouds, weights, error, message",
    [
        ([], None, ValueError, "clouds must hold at least one cloud, got none"),
        (3, None, TypeError, "clouds must be a list of tensors, one for each cloud, got int"),
        (None, None, TypeError, "clouds must be a list of tensors, one for each cloud, got NoneType"),
        (torch.tensor(1.0), None, ValueError, "clouds must be a list of tensors, one for each cloud, got a scalar"),
        ([torch.zeros(3, 2)], 2.0, TypeError, "weights must be a list of tensors, one for each cloud, got float"),
        ([torch.zeros(3, 2), "x"], None, TypeError, r"clouds\[1\] must be a torch.Tensor, got str"),
        ([torch.zeros(3, 2), torch.zeros(0, 2)], None, ValueError, r"clouds\[1\] is an empty cloud: shape \(0, 2\)"),
        ([torch.zeros(3, 2), torch.zeros(4, 3)], None, ValueError, r"clouds\[1\] has points in dimension 3"),
        ([torch.zeros(3, 2), torch.zeros(4, 2).double()], None, TypeError, r"clouds\[1\] has dtype torch.float64"),
        ([torch.full((3, 2), torch.nan)], None, ValueError, r"clouds\[0\] must be finite, got 6 NaN"),
        ([torch.zeros(1, 3, 2)], None, ValueError, r"clouds\[0\] must have shape \(n, d\), got \(1, 3, 2\)"),
        ([torch.zeros(3, 2)], [], ValueError, "weights must hold one entry a cloud, got 0 for 1 clouds"),
        ([torch.zeros(3, 2)], [torch.ones(2)], ValueError, r"weights\[0\] must have shape \(3,\), got \(2,\)"),
    ],
)
def test_bad_clouds(clouds, weights, error, message):
    with pytest.raises(error, match=f"^{message}"):
        pad(clouds, weights)


def test_a_cloud_of_padding_alone_cannot_be_normalised():
    with pytest.raises(ValueError, match=r"^weights leaves no point in cloud 1 of the batch"):
        normalise(*PointClouds(torch.zeros(2, 3, 2), torch.tensor([[1.0, 1, 1], [0, 0, 0]])))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_spread_normal_points_are_normal_and_more_even_than_random_ones(dim):
    """Also the first of them; in two dimensions they are the plastic number's sequence."""
    points = spread_normal(400, dim)
    assert points.shape == (400, dim) and points.dtype == torch.float32
    assert torch.equal(points[:50], spread_normal(50, dim))
    for part in (points, points[:50]):
        assert part.mean(0).abs().max() < 0.2 and (part.std(0) - 1).abs().max() < 0.15
    drawn = torch.randn(400, dim, generator=torch.Generator().manual_seed(0))
    nearest = [(torch.cdist(x, x) + 9 * torch.eye(400)).amin(1) for x in (points, drawn)]
    assert nearest[0].quantile(0.05) > 2 * nearest[1].quantile(0.05)
    if dim == 2:
        plastic = 1.324717957244746
        expected = torch.tensor([[(0.5 + k / plastic) % 1, (0.5 + k / plastic**2) % 1] for k in (1, 2, 3)])
        assert torch.allclose(torch.special.ndtr(points[:3]), expected, atol=1e-5)


@pytest.mark.parametrize("n, dim", [(10**400, 2), (2, 10**400), (True, 2), (2, 0), ("3", 2), (2, 1.0)])
def test_counts_that_are_none_are_refused(n, dim):
    with pytest.raises((TypeError, ValueError), match=r"^(n|dim) must be"):
        spread_normal(n, dim)


def test_negative_weights_are_refused():
    """The mask would take them for padding."""
    with pytest.raises(ValueError, match=r"^weights\[1\] must be nonnegative, got a minimum of -1$"):
        pad([torch.zeros(1, 2)] * 2, [torch.ones(1), -torch.ones(1)])
    with pytest.raises(ValueError, match=r"^weights must be nonnegative"):
        compact(torch.zeros(1, 2, 2), torch.tensor([[1.0, -1]]))
    with pytest.raises(ValueError, match=r"^weights must have shape \(1, 2\), got \(1, 3\)$"):
        compact(torch.zeros(1, 2, 2), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"^points must have shape \(B, n, d\), got \(2, 2\)$"):
        compact(torch.zeros(2, 2), torch.ones(2))


def test_compact_moves_padding_to_the_end():
    points = torch.arange(8.0).view(1, 4, 2)
    result = compact(points, torch.tensor([[0.0, 2, 0, 3]]))
    assert result.points.tolist() == [[[2, 3], [6, 7]]] and result.weights.tolist() == [[2, 3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [300, 70_000])
def test_half_precision_is_summed_in_single(dtype, n):
    """70,000 exceeds the largest number of float16, and bfloat16 rounds it by 1 %."""
    draw = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    points = (draw * torch.tensor([1.0, 100]) + torch.tensor([3.0, 200])).to(dtype)
    result = normalise(points, torch.ones(n, dtype=dtype))
    assert result.dtype == dtype
    exact = points.double()
    expected = (exact - exact.mean(0)) / exact.std(0, correction=0)
    torch.testing.assert_close(result.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 1e37])
def test_normalise_in_any_units(cloud, scale):
    """Squares of single precision would overflow or vanish."""
    points = (cloud(9, 3) + 2).float()
    result = normalise(points * scale)
    torch.testing.assert_close(result, normalise(points), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_constant_coordinate_is_finite():
    points = torch.tensor([[1.0, 5], [2, 5], [4, 5]], requires_grad=True)
    normalise(points)[:, 0].square().sum().backward()
    assert torch.isfinite(points.grad).all()
    assert torch.autograd.gradcheck(lambda x: normalise(x), torch.rand(4, 2, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("arguments", [(0, 2), (-1, 2), (5, 0), (5.0, 2), (5, True)])
def test_spread_normal_needs_a_size(arguments):
    with pytest.raises((TypeError, ValueError), match=r"^(n|dim) must be"):
        spread_normal(*arguments)
