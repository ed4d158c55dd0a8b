"""Nearest points by a k-d tree: the same indices as by blocks of distances, on every cloud, and where it is used."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

from ddeq_fast import chamfer, nearest
from ddeq_fast.distances import blocks, points, tree

pytest.importorskip("scipy")


def assert_same(x, y, mask=None):
    found, expected = (nearest(x, y, y_mask=mask, backend=backend) for backend in ("tree", "dense"))
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.squared_distance, expected.squared_distance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("m, n", [(1, 1), (1, 9), (9, 1), (1, 2), (41, 133)])
def test_same_as_blocks(m, n, dtype, cloud):
    for d in (1, 2, 3, 11):
        assert_same(cloud(2, m, d).to(dtype), cloud(2, n, d).to(dtype))
        assert_same(cloud(m, d).to(dtype), cloud(n, d).to(dtype))


@pytest.mark.parametrize("padding", [0.0, 1e30])
def test_padding_is_never_nearest(padding, cloud):
    x, y = cloud(4, 20, 3), cloud(4, 33, 3)
    mask = torch.ones(4, 33, dtype=torch.bool)
    mask[0, 5:], mask[1, :32], mask[2, ::2] = False, False, False
    y[~mask] = padding
    assert_same(x, y, mask)
    assert_same(x.float(), y.float(), mask)


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=60), st.data())
def test_of_equally_near_sources_the_first_is_found(coordinates, data):
    y = torch.tensor(coordinates, dtype=data.draw(st.sampled_from([torch.float64, torch.float32])))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(y), max_size=len(y)).filter(any)))
    x = torch.cartesian_prod(torch.arange(-2.0, 2.5, 0.5), torch.arange(-2.0, 2.5, 0.5)).to(y)
    assert_same(x, y, mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_more_equally_near_sources_than_candidates(dtype, cloud):
    """Targets at the centre of a sphere, whose points are as far but for rounding."""
    y = torch.nn.functional.normalize(cloud(3 * tree.MOST_CANDIDATES, 3, dtype=torch.float64), dim=-1).to(dtype)
    x = torch.cat((torch.zeros(5, 3, dtype=dtype), cloud(40, 3).to(dtype), y[::7]))
    assert_same(x, y)


def test_points_in_one_place(cloud):
    same = cloud(1, 3).expand(200, 3)
    assert_same(same, same)
    assert_same(cloud(50, 3), torch.cat((cloud(30, 3), same, -0.0 * same, 0.0 * same, cloud(30, 3))))


def test_nearly_equal_distances_are_decided_as_by_blocks(cloud):
    """Points of single precision far from the origin: rounding decides among many."""
    assert_same(cloud(300, 2, dtype=torch.float32) + 1e4, cloud(900, 2, dtype=torch.float32) + 1e4)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_squares_that_vanish_or_overflow(scale, cloud):
    x, y = scale * cloud(30, 2), scale * cloud(70, 2)
    assert_same(x, y)
    assert_same(x, y, torch.arange(70) % 3 > 0)
    if 1e-40 < scale < 1e40:
        assert_same(x.float(), y.float())


def test_nan_that_nobody_could_see_changes_nothing(cloud):
    """Where values cannot be read, NaN reaches the search."""
    x, y = cloud(1, 5, 2), cloud(1, 7, 2)
    y[0, 3] = float("nan")
    assert torch.equal(tree.search(x, y, None), blocks.search(x, y, None))


def test_auto_takes_a_tree_for_large_clouds_in_few_dimensions(cloud, monkeypatch):
    used = []
    monkeypatch.setattr(tree, "search", lambda x, *rest: used.append(x.shape) or blocks.search(x, *rest))
    monkeypatch.setattr(tree, "SIZES", ((3, 20),))
    small, large = cloud(19, 3), cloud(20, 3)
    for x, y in [(small, large), (large, small), (cloud(20, 4), cloud(20, 4))]:
        nearest(x, y)
    nearest(large, large, backend="dense")
    assert not used
    nearest(large, large)
    vmap(nearest)(cloud(4, 20, 3), cloud(4, 20, 3))
    chamfer(large, large)
    assert used == [(1, 20, 3), (4, 20, 3), (1, 20, 3), (1, 20, 3)]


def test_derivatives_are_those_of_blocks(cloud):
    x, y = cloud(2, 12, 3, grad=True), cloud(2, 9, 3, grad=True)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    found, expected = (
        torch.autograd.grad(chamfer(x, y, y_mask=mask, backend=backend).sum(), (x, y)) for backend in ("tree", "dense")
    )
    assert all(map(torch.equal, found, expected))


def test_transformed_and_compiled(cloud):
    x, y = cloud(3, 12, 3), cloud(9, 3)
    found = vmap(lambda x: nearest(x, y, backend="tree").index)(x)
    assert torch.equal(found, torch.stack([nearest(one, y).index for one in x]))
    compiled = torch.compile(lambda x: nearest(x, y, backend="tree").index, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x[0]), found[0])
    torch.library.opcheck(points.index_op, (x, cloud(3, 9, 3), torch.ones(3, 9, dtype=torch.bool), "tree"))


def test_without_scipy_auto_goes_by_blocks(cloud, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setattr(tree, "SIZES", ((3, 1),))
    x, y = cloud(5, 2), cloud(7, 2)
    assert torch.equal(nearest(x, y).index, nearest(x, y, backend="dense").index)
    with pytest.raises(ValueError, match=r"^backend 'tree' cannot run this: scipy is not installed: pip install"):
        nearest(x, y, backend="tree")


def test_it_runs_on_cpus_alone():
    x = torch.zeros(3, 2, device="meta")
    with pytest.raises(ValueError, match=r"^backend 'tree' cannot run this: needs a tensor on a CPU, got one on meta$"):
        nearest(x, x, backend="tree")
