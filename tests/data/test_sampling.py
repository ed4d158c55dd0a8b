"""Voxel grids against the original code's results, reduction to a range of sizes, and sampling of surfaces."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import references
from ddeq_fast.data.dataset import generator
from ddeq_fast.data.sampling import sample_surface, to_unit_ball, voxel_grid, voxel_reduce


@pytest.mark.parametrize("size", ["0.1", "0.5", "1.0"])
def test_voxel_grid_agrees_with_the_original_code(size):
    golden = references.golden("misc")
    result = voxel_grid(torch.from_numpy(golden["voxel/points"]), float(size))
    np.testing.assert_allclose(result.numpy(), golden[f"voxel/leaf{size}"], rtol=0, atol=1e-12)


@given(st.integers(0, 1000), st.integers(1, 4), st.floats(0.05, 3.0))
def test_voxel_grid_is_the_mean_of_every_cell(seed, dim, size):
    points = torch.randn(50, dim, generator=generator(seed), dtype=torch.float64)
    cells = {}
    least = points.min(0).values
    for point in points:
        cells.setdefault(tuple(((point - least) / size).floor().tolist()), []).append(point)
    expected = torch.stack([torch.stack(cells[key]).mean(0) for key in sorted(cells)])
    torch.testing.assert_close(voxel_grid(points, size), expected, rtol=0, atol=1e-12)


def test_voxel_grid_keeps_the_dtype_and_refuses_what_it_cannot_number():
    points = torch.rand(100, 3)
    assert voxel_grid(points, 0.3).dtype == torch.float32
    assert torch.equal(voxel_grid(points, 1e-6).sort(0).values, points.sort(0).values)
    with pytest.raises(ValueError, match=r"^size is too small: a grid of \d+ x \d+ x \d+ cells cannot be numbered$"):
        voxel_grid(points, 1e-8)
    with pytest.raises(ValueError, match=r"^size must lie in \(0, inf\), got 0"):
        voxel_grid(points, 0.0)
    with pytest.raises(ValueError, match=r"^points must have shape \(n, d\), got \(2, 3, 3\)$"):
        voxel_grid(torch.zeros(2, 3, 3), 1.0)


@pytest.mark.parametrize("number", [300, 2000, 30000])
@pytest.mark.parametrize("low, high", [(250, 400), (30, 33), (1, 1)])
def test_reduction_leads_into_the_range(number, low, high):
    points = torch.randn(number, 3, generator=generator(0)) * torch.tensor([5.0, 1.0, 0.01])
    reduced = voxel_reduce(points, low, high)
    assert low <= len(reduced) <= high
    assert torch.equal(reduced, points) if number <= high else len(reduced) < number


def test_reduction_of_few_distinct_points():
    distinct = torch.randn(20, 3, generator=generator(0), dtype=torch.float64)
    reduced = voxel_reduce(distinct.repeat(50, 1), 100, 200)
    torch.testing.assert_close(reduced.sort(0).values, distinct.sort(0).values, rtol=0, atol=1e-12)
    assert voxel_reduce(torch.ones(1000, 3), 100, 200).tolist() == [[1.0, 1.0, 1.0]]
    with pytest.raises(ValueError, match=r"^low must be at most 4, got 5$"):
        voxel_reduce(distinct, 5, 4)


# A unit square of two triangles, one of no area, and a triangle of area 2 away from it, above.
VERTICES = torch.tensor(
    [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 5], [2, 0, 5], [0, 2, 5]], dtype=torch.float64
)
TRIANGLES = torch.tensor([[1, 1, 2], [0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 5, 5]])


def test_surface_points_are_uniform():
    """Shares and means within five standard deviations of 20,000 draws."""
    points = sample_surface(VERTICES, TRIANGLES, 20_000, generator(0))
    low, high = points[points[:, 2] == 0], points[points[:, 2] == 5]
    assert len(low) + len(high) == 20_000
    assert abs(len(low) - 20_000 / 3) < 5 * (20_000 * 2 / 9) ** 0.5
    assert (low[:, :2] >= 0).all() and (low[:, :2] <= 1).all()
    assert (high[:, :2] >= 0).all() and (high[:, :2].sum(1) <= 2 + 1e-12).all()
    quarters = torch.histogramdd(low[:, :2].contiguous(), [2, 2], range=[0.0, 1.0, 0.0, 1.0]).hist
    assert (quarters - len(low) / 4).abs().max() < 5 * (len(low) * 3 / 16) ** 0.5
    # A triangle's points have their mean in its centre of mass, and a quarter lies beyond half of its height.
    torch.testing.assert_close(high[:, :2].mean(0), torch.full((2,), 2 / 3, dtype=torch.float64), rtol=0, atol=0.03)
    assert abs((high[:, 0] > 1).double().mean() - 0.25) < 5 * (0.25 * 0.75 / len(high)) ** 0.5


def test_surface_points_are_reproducible():
    def draw(seed):
        return sample_surface(VERTICES, TRIANGLES, 10, generator(seed))

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert sample_surface(VERTICES.float(), TRIANGLES, 10, generator(0)).dtype == torch.float32


def test_a_surface_needs_area():
    for triangles in (TRIANGLES[:1], TRIANGLES[:0]):
        with pytest.raises(ValueError, match=r"^triangles must cover an area, got \d triangles of none$"):
            sample_surface(VERTICES, triangles, 10, generator(0))
    with pytest.raises(ValueError, match=r"^triangles must be int64 of shape \(m, 3\), got torch.int64 \(5, 2\)$"):
        sample_surface(VERTICES, TRIANGLES[:, :2], 10, generator(0))


def test_unit_ball():
    points = 1e3 + 40 * torch.randn(100, 3, generator=generator(0), dtype=torch.float64)
    ball = to_unit_ball(points)
    torch.testing.assert_close(ball.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert ball.norm(dim=1).max().item() == pytest.approx(1, abs=1e-12)
    ratio = torch.pdist(ball) / torch.pdist(points)
    torch.testing.assert_close(ratio, ratio[:1].expand(len(ratio)), rtol=1e-9, atol=0)
    assert (to_unit_ball(torch.full((4, 3), 0.1)) == 0).all()
