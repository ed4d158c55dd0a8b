"""Nearest points: the search, its ties, padding and corners, derivatives, refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import references
from ddeq_fast import nearest
from ddeq_fast.distances import blocks
from ddeq_fast.distances import points as op

SIZES = pytest.mark.parametrize("m, n", [(1, 1), (1, 9), (9, 1), (17, 31)])


def assert_reference(x, y, mask=None, tolerance=1e-12):
    found = nearest(x, y, y_mask=mask)
    q, index = references.nearest(x, y, mask)
    assert found.index.dtype == torch.int64 and found.squared_distance.dtype == x.dtype
    assert (found.index.numpy() == index).all()
    torch.testing.assert_close(found.squared_distance.double(), torch.as_tensor(q), rtol=tolerance, atol=0)


@SIZES
@pytest.mark.parametrize("d", [1, 2, 3, 8, 9, 33])
def test_reference(m, n, d, cloud):
    assert_reference(cloud(2, m, d), cloud(2, n, d))
    assert_reference(cloud(2, m, d).float(), cloud(2, n, d).float(), tolerance=1e-6)


@SIZES
def test_a_cloud_without_batch_axis(m, n, cloud):
    assert_reference(cloud(m, 3), cloud(n, 3))
    mask = torch.arange(n) == n - 1
    assert_reference(cloud(m, 3), cloud(n, 3), mask)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_half_precision_is_searched_in_single(dtype, tolerance, cloud):
    """Distances of 16-bit points, exact but for the rounding of the result."""
    assert_reference(cloud(2, 9, 3, dtype=dtype), cloud(2, 40, 3, dtype=dtype), tolerance=tolerance)


@pytest.mark.parametrize("entries", [1, 60, 1 << 20])
def test_blocks_of_any_size_give_the_same(entries, cloud, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", entries)
    mask = torch.arange(31) % 3 == torch.tensor([[0], [1]])
    assert_reference(cloud(2, 17, 3), cloud(2, 31, 3), mask)


@pytest.mark.parametrize("padding", [0.0, 1e30])
def test_padding_is_never_nearest(padding, cloud):
    x, y = cloud(3, 8, 2), cloud(3, 12, 2)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, 5:], mask[1, :11], mask[2, ::2] = False, False, False
    y[~mask] = padding
    assert_reference(x, y, mask)
    x[:, 0] = padding
    assert_reference(x, y, mask)
    assert (nearest(x, y, y_mask=mask[..., None]).index == nearest(x, y, y_mask=mask).index).all()


def test_padding_is_not_found_where_all_squares_overflow():
    x, y = torch.full((1, 2), 3e38), torch.tensor([[3e38, 3e38], [-3e38, 0.0], [0.0, -3e38]])
    found = nearest(x, y, y_mask=torch.tensor([False, True, True]))
    assert found.index[0] > 0 and found.squared_distance[0] == float("inf")


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=30), st.data())
def test_of_equally_near_sources_the_first_is_found(points, data):
    y = torch.tensor(points, dtype=torch.float64)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(y), max_size=len(y)).filter(any)))
    x = torch.cartesian_prod(torch.arange(-2.0, 3), torch.arange(-2.0, 3)).double()
    assert_reference(x, y, mask)


def test_far_from_the_origin(cloud):
    x, y = (cloud(2, n, 3, dtype=torch.float32) + 1e4 for n in (20, 50))
    assert_reference(x, y, tolerance=1e-6)


def test_inputs_that_are_not_contiguous(cloud):
    mask = torch.arange(8)[:, None].expand(8, 2).T % 2 == 0
    assert_reference(cloud(3, 9, 2).transpose(0, 2), cloud(3, 16, 2).transpose(0, 2)[:, ::2], mask)


# Derivatives


def test_first_and_second_derivatives(cloud):
    x, y = cloud(2, 4, 3, grad=True), cloud(2, 5, 3, grad=True)
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]])

    def distances(x, y):
        return nearest(x, y, y_mask=mask).squared_distance

    assert gradcheck(distances, (x, y))
    assert gradgradcheck(distances, (x, y))


def test_gradient_in_closed_form(cloud):
    """2 (x_i - y_j) to the target, its negative summed over the targets of a source; nothing to padding."""
    x, y, g = cloud(1, 30, 2, grad=True), cloud(1, 4, 2, grad=True), cloud(30)[None]
    mask = torch.tensor([[True, False, True, True]])
    q, index = nearest(x, y, y_mask=mask)
    dx, dy = torch.autograd.grad((g * q).sum(), (x, y))
    step = 2 * g[0, :, None] * (x - y[:, index[0]])[0].detach()
    torch.testing.assert_close(dx[0], step)
    torch.testing.assert_close(dy[0], -torch.zeros(4, 2, dtype=torch.float64).index_add(0, index[0], step))
    assert (dy[0, 1] == 0).all() and (dy[0, mask[0]] != 0).any()


def test_coincident_points_have_no_gradient(cloud):
    x = cloud(5, 3, grad=True)
    y = x.detach().flip(0).requires_grad_()
    q, index = nearest(x, y)
    assert (q == 0).all() and index.tolist() == [4, 3, 2, 1, 0]
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(q.sum(), (x, y)))


def test_the_index_has_no_gradient(cloud):
    assert not nearest(cloud(3, 2, grad=True), cloud(4, 2)).index.requires_grad


def test_torch_compile(cloud):
    x, y = cloud(2, 5, 3, grad=True), cloud(2, 6, 3)
    compiled = torch.compile(lambda x, y: nearest(x, y).squared_distance.sum(), backend="aot_eager", fullgraph=True)
    expected = nearest(x, y).squared_distance.sum()
    value = compiled(x, y)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_operator_is_registered_soundly(cloud):
    torch.library.opcheck(op.index_op, (cloud(2, 5, 3), cloud(2, 6, 3), None, "dense"))
    torch.library.opcheck(op.index_op, (cloud(2, 5, 3), cloud(2, 6, 3), torch.ones(2, 6, dtype=torch.bool), "dense"))


# Refusals

X, Y = torch.zeros(2, 4, 3), torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"x": [[1.0]]}, TypeError, r"^x must be a torch.Tensor, got list$"),
        ({"x": X.int()}, TypeError, r"^x must have a floating-point dtype, got torch.int32$"),
        ({"x": X[0, 0]}, ValueError, r"^x must have shape \(n, d\) or \(B, n, d\), got \(3,\)$"),
        ({"x": X[:, :0]}, ValueError, r"^x is an empty cloud: shape \(2, 0, 3\)$"),
        ({"y": Y[:, :0]}, ValueError, r"^y is an empty cloud: shape \(2, 0, 3\)$"),
        ({"x": X / 0}, ValueError, r"^x must be finite, got 24 NaN or infinite values of 24$"),
        ({"y": Y / 0}, ValueError, r"^y must be finite, got 30 NaN or infinite values of 30$"),
        ({"y": Y.double()}, TypeError, r"^y has dtype torch.float64 but x has torch.float32$"),
        ({"y": Y[0]}, ValueError, r"^y has batch shape \(\) but x has \(2,\)$"),
        ({"y": Y[..., :2]}, ValueError, r"^y has points in dimension 2 but x in 3$"),
        ({"y": Y.to("meta")}, ValueError, r"^y is on meta but x is on cpu$"),
        ({"y_mask": [True] * 5}, TypeError, r"^y_mask must be a torch.Tensor, got list$"),
        ({"y_mask": Y[..., 0]}, TypeError, r"^y_mask must have dtype torch.bool, got torch.float32$"),
        ({"y_mask": X[..., 0] == 0}, ValueError, r"^y_mask must have shape \(2, 5\), got \(2, 4\)$"),
        (
            {"y_mask": torch.tensor([[True] * 5, [False] * 5])},
            ValueError,
            r"^y_mask leaves no point in cloud 1 of the batch$",
        ),
        ({"backend": "keops"}, ValueError, r"^backend must be one of auto, dense, tree, triton; got 'keops'$"),
        ({"backend": None}, ValueError, r"^backend must be one of auto, dense, tree, triton; got None$"),
    ],
)
def test_refusals(arguments, error, message):
    arguments = {"x": X, "y": Y} | arguments
    with pytest.raises(error, match=message):
        nearest(arguments.pop("x"), arguments.pop("y"), **arguments)


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ValueError, match=r"^backend 'triton' cannot run this: needs a tensor on a GPU .*got one on cpu"
    ):
        nearest(X, Y, backend="triton")
