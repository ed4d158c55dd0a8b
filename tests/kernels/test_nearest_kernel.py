"""The Triton kernel of nearest points, against the reference in every shape and corner."""

import pytest
import torch

import references
from ddeq_fast.distances.chamfer import chamfer
from ddeq_fast.distances.points import nearest, resolve
from ddeq_fast.kernels import nearest as kernel

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
# Unrolled coordinates, and more of them than are loaded at a time.
DIMENSIONS = pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 9, 16, 19])
TWO_DIMENSIONS = pytest.mark.parametrize("d", [3, 19])


def assert_reference(x, y, device, mask=None):
    found = nearest(x.to(device), y.to(device), y_mask=None if mask is None else mask.to(device), backend="triton")
    q, index = references.nearest(x, y, mask)
    assert found.index.dtype == torch.int64 and found.squared_distance.dtype == x.dtype
    assert (found.index.cpu().numpy() == index).all()
    eps = 4 * torch.finfo(x.dtype).eps
    torch.testing.assert_close(found.squared_distance.cpu().double(), torch.as_tensor(q), rtol=eps, atol=0)


@DTYPES
@DIMENSIONS
def test_reference(d, dtype, device, cloud):
    assert_reference(cloud(2, 9, d, dtype=dtype), cloud(2, 71, d, dtype=dtype), device)


@TWO_DIMENSIONS
@pytest.mark.parametrize("m, n", [(1, 1), (1, 130), (130, 1), (129, 33), (65, 64)])
def test_sizes(m, n, d, device, cloud):
    assert_reference(cloud(m, d).float(), cloud(n, d).float(), device)
    assert_reference(cloud(m, d), cloud(n, d), device, torch.arange(n) == n // 2)


@TWO_DIMENSIONS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_searched_in_single(dtype, d, device, cloud):
    assert_reference(cloud(2, 9, d, dtype=dtype), cloud(2, 71, d, dtype=dtype), device)


@DTYPES
@TWO_DIMENSIONS
@pytest.mark.parametrize("splits", [2, 3, 7])
def test_sources_shared_out_among_programs(splits, d, dtype, device, cloud, monkeypatch):
    monkeypatch.setattr(kernel, "split", lambda *_: splits)
    x, y = cloud(2, 5, d, dtype=dtype), cloud(2, 170, d, dtype=dtype)
    y[:, 100:] = y[:, :70]  # ties between programs
    mask = torch.ones(2, 170, dtype=torch.bool)
    mask[1, 20:] = False  # programs without sources
    assert_reference(x, y, device)
    assert_reference(x, y, device, mask)


@TWO_DIMENSIONS
@pytest.mark.parametrize("padding", [0.0, 1e30])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_padding_is_never_nearest(padding, d, device, cloud):
    """Ragged: whole tiles, part of a tile, holes, all but the last."""
    x, y = cloud(4, 6, d, dtype=torch.float32), cloud(4, 100, d, dtype=torch.float32)
    mask = torch.ones(4, 100, dtype=torch.bool)
    mask[0, 33:], mask[1, :70], mask[2, ::3], mask[3, :99] = False, False, False, False
    y[~mask] = padding
    x[:, 0] = y[0, -1]
    assert_reference(x.double(), y.double(), device, mask)
    expected = references.nearest(x[:, 1:], y, mask)[1]
    assert (kernel.nearest(x.to(device), y.to(device), mask.to(device))[:, 1:].cpu().numpy() == expected).all()


@TWO_DIMENSIONS
def test_whole_blocks_of_padding_are_not_read(d, device, cloud):
    """NaN positions after the last source's tile leave no trace."""
    x, y = cloud(1, 5, d, dtype=torch.float32), cloud(1, 300, d, dtype=torch.float32)
    y[0, 64:] = float("nan")
    mask = torch.arange(300)[None] < 18
    index = kernel.nearest(x.to(device), y.to(device), mask.to(device)).cpu()
    assert (index.numpy() == references.nearest(x, y[:, :64], mask[:, :64])[1]).all()


@pytest.mark.parametrize("splits", [1, 3])
@TWO_DIMENSIONS
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_cloud_without_sources_and_squares_that_overflow(d, splits, device, monkeypatch):
    """Neither leaves an index outside the cloud; padding is found only where there is nothing else."""
    monkeypatch.setattr(kernel, "split", lambda *_: splits)
    x, y = torch.full((3, 2, d), 3e38), torch.full((3, 100, d), -3e38)
    mask = torch.zeros(3, 100, dtype=torch.bool)
    mask[1, 40], mask[2, 98] = True, True
    index = kernel.nearest(x.to(device), y.to(device), mask.to(device)).cpu()
    assert index.tolist() == [[0, 0], [40, 40], [98, 98]]
    index = kernel.nearest(x.to(device), y.to(device))
    assert ((index >= 0) & (index < 100)).all()


@DTYPES
@TWO_DIMENSIONS
def test_of_equally_near_sources_the_first_is_found(d, dtype, device):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-1, 2, (2, n, d), generator=generator).to(dtype) for n in (40, 150))
    y[..., 3:], x[..., 3:] = 0, 0
    mask = torch.rand(2, 150, generator=generator) < 0.3
    for chosen in (None, mask):
        assert_reference(x, y, device, chosen)


@TWO_DIMENSIONS
def test_coincident_points(d, device, cloud):
    x = cloud(2, 70, d, dtype=torch.float32).to(device)
    found = nearest(x, x.flip(1), backend="triton")
    assert (found.squared_distance == 0).all()
    assert (found.index.cpu() == torch.arange(69, -1, -1)).all()


@TWO_DIMENSIONS
def test_far_from_the_origin(d, device, cloud):
    assert_reference(*(cloud(2, n, d, dtype=torch.float32) + 1e4 for n in (20, 90)), device)


@TWO_DIMENSIONS
def test_inputs_that_are_not_contiguous(d, device, cloud):
    x, y = cloud(d, 9, 2).transpose(0, 2), cloud(d, 80, 2).transpose(0, 2)[:, ::2]
    mask = torch.arange(40)[:, None].expand(40, 2).T % 3 > 0
    assert_reference(x, y, device, mask)


@TWO_DIMENSIONS
def test_derivatives_agree_with_the_dense_backend(d, device, cloud):
    x, y = (cloud(2, n, d).to(device).requires_grad_() for n in (5, 7))

    def derivatives(backend):
        first = torch.autograd.grad(chamfer(x, y, backend=backend).sum(), (x, y), create_graph=True)
        return *first, *torch.autograd.grad(sum((g * g).sum() for g in first), (x, y))

    for value, expected in zip(derivatives("triton"), derivatives("dense"), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_auto_interprets_nothing(cloud):
    assert resolve("auto", cloud(3, 2)) == "dense"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_on_a_gpu(cloud):
    assert resolve("auto", cloud(3, 2).cuda()) == "triton"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_more_than_two_to_the_31_coordinates():
    """Offsets into a cloud beyond the range of a 32-bit integer."""
    y = torch.zeros(1, (1 << 28) + 64, 8, dtype=torch.float16, device="cuda")
    y[0, -1] = 1
    assert kernel.nearest(torch.ones(1, 1, 8, dtype=torch.float16, device="cuda"), y).item() == y.shape[1] - 1
