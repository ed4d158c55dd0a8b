"""The Triton backend: against the reference, in every shape of computation, dtype and corner."""

import pytest
import torch

import references
from ddeq_fast import Gaussian, Laplacian, RadialKernel, Riesz, field, potential, potential_and_field, squared_mmd
from ddeq_fast.kernels import high_d, launch, low_d
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import triton
from references import relative_error

TRITON = triton.Triton()
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
LOW, WIDE = [1, 2, 3, 5, 8], [9, 19, 130]
FEW, MANY = 13, 66  # sources: below and above the number that is summed directly
# (d, n) for each shape of computation; in high dimension float64 is summed directly whatever n is
SHAPES = pytest.mark.parametrize("d, n", [(3, MANY), (3, FEW), (19, FEW), (19, MANY)])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
DIMENSIONS = pytest.mark.parametrize("d, n", [(d, MANY) for d in LOW + WIDE] + [(d, FEW) for d in (1, 2, 8, *WIDE)])
MIXTURE = 0.5 * Riesz(1.0) + 2.0 * Gaussian(1.7) + -0.25 * Laplacian(0.6)
TWO_KERNELS = pytest.mark.parametrize("kernel", [Riesz(1.0), MIXTURE], ids=["riesz_one", "mixture"])


def assert_reference(x, y, v, kernel, device, tolerance=None, backend="triton"):
    targets = x.to(device)
    sources = targets if y is x else y.to(device)
    u, f = potential_and_field(targets, sources, kernel, charges=v.to(device), backend=backend)
    assert u.dtype == f.dtype == x.dtype and u.device == f.device == x.to(device).device
    expected_u, expected_f = references.potential_and_field(x, y, v, kernel)
    tolerance = tolerance or TOLERANCE[x.dtype]
    assert relative_error(u, expected_u) <= tolerance
    assert relative_error(f, expected_f) <= tolerance


# Sums


@DTYPES
@SHAPES
def test_reference(kernel, d, n, dtype, device, cloud):
    v = cloud(2 * n).view(2, n).to(dtype)
    assert_reference(cloud(2, 9, d, dtype=dtype), cloud(2, n, d, dtype=dtype), v, kernel, device)


@DTYPES
@DIMENSIONS
def test_dimensions(d, n, dtype, device, cloud):
    assert_reference(cloud(5, d, dtype=dtype), cloud(n, d, dtype=dtype), cloud(n, dtype=dtype), Riesz(1.0), device)


@pytest.mark.parametrize("m, n", [(1, 1), (1, MANY), (MANY, 1), (67, 65), (3, 129)])
@pytest.mark.parametrize("d", [3, 19])
def test_sizes(m, n, d, device, cloud):
    x, y, v = cloud(m, d).float(), cloud(n, d).float(), cloud(n).float()
    assert_reference(x, y, v, Riesz(1.0), device)
    assert_reference(x, y, v, Gaussian(0.8), device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@SHAPES
def test_half_precision_is_summed_in_single(d, n, dtype, device, cloud):
    v = cloud(2 * n).view(2, n).to(dtype)
    assert_reference(cloud(2, 9, d, dtype=dtype), cloud(2, n, d, dtype=dtype), v, Riesz(1.0), device)


@TWO_KERNELS
@DTYPES
@SHAPES
def test_one_of_the_two(kernel, d, n, dtype, device, cloud):
    inputs = [t.to(device, dtype) for t in (cloud(2, 9, d), cloud(2, n, d), cloud(2 * n).view(2, n))]
    u, f = potential_and_field(*inputs[:2], kernel, charges=inputs[2], backend="triton")
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        potential(*inputs[:2], kernel, charges=inputs[2], backend="triton"), u, rtol=rtol, atol=0
    )
    torch.testing.assert_close(field(*inputs[:2], kernel, charges=inputs[2], backend="triton"), f, rtol=rtol, atol=rtol)


@SHAPES
def test_inputs_that_are_not_contiguous(d, n, device, cloud):
    x, y = cloud(d, 9, 2).transpose(0, 2), cloud(d, 2 * n, 2).transpose(0, 2)[:, ::2]
    assert_reference(x.float(), y.float(), cloud(4 * n).view(2, 2 * n)[:, ::2].float(), Riesz(1.0), device)


@pytest.mark.parametrize("splits", [2, 7])
@pytest.mark.parametrize("sums, d", [(low_d, 3), (high_d, 19)])
def test_sources_shared_out_among_programs(sums, d, splits, device, cloud, monkeypatch):
    monkeypatch.setattr(sums, "split", lambda *_: splits)
    x, y, v = cloud(2, 5, d), cloud(2, 170, d), cloud(2 * 170).view(2, 170)
    v[1, 20:] = 0
    y[0, 100] = x[0, 1]
    for dtype in (torch.float32, torch.float16):
        assert_reference(x.to(dtype), y.to(dtype), v.to(dtype), MIXTURE, device)


def test_sources_are_shared_out_where_programs_are_few(monkeypatch):
    class Properties:
        multi_processor_count = 100

    class OnGpu:
        is_cuda, device = True, "cuda"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert launch.split(OnGpu, 1000, 500) == 1
    assert launch.split(OnGpu, 1, 7) == 1
    assert launch.split(OnGpu, 1, 80) == 10
    assert launch.split(OnGpu, 40, 500) == 10
    assert launch.split(torch.zeros(1), 1, 500) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("d, n", [(8, (1 << 28) + 9), (1024, (1 << 21) + 9)])
def test_more_numbers_than_32_bits_count(d, n):
    """The last source lies past 2^31 coordinates, and so does the last target when the roles are exchanged."""
    if torch.cuda.mem_get_info()[0] < 48 << 30:  # the largest takes half of it, and tests may share the GPU
        pytest.skip("needs 48 GiB of free memory")
    many, charges = torch.zeros(1, n, d, dtype=torch.float16, device="cuda"), torch.zeros(1, n, device="cuda").half()
    many[0, -1], charges[0, -1] = 1, 1
    one = torch.zeros(1, 1, d, dtype=torch.float16, device="cuda")
    u, f = TRITON.evaluate(one, many, charges, Riesz(1.0), True, True)
    torch.testing.assert_close(u.float(), torch.full_like(u, -(d**0.5)).float(), rtol=1e-3, atol=0)
    torch.testing.assert_close(f.float(), torch.full_like(f, d**-0.5).float(), rtol=1e-3, atol=0)
    u, f = TRITON.evaluate(many, one, torch.ones_like(one[..., 0]), Riesz(1.0), True, True)
    assert (u[0, :-1] == 0).all() and (f[0, :-1] == 0).all()
    assert float(u[0, -1]) == pytest.approx(-(d**0.5), rel=1e-3)


# Padding, coincidence, offsets


@TWO_KERNELS
@pytest.mark.parametrize("garbage", [0.0, 1e6])
@pytest.mark.parametrize("d, n", [(3, 150), (3, 60), (19, 60), (19, 150)])
def test_zero_charges_are_padding(garbage, d, n, kernel, device, cloud):
    """Ragged: a whole cloud, whole tiles, part of a tile, holes."""
    x, y, v = cloud(4, 5, d).float(), cloud(4, n, d).float(), cloud(4 * n).view(4, n).float()
    for b, padding in ((1, slice(33, None)), (2, slice(n // 2, None)), (3, slice(10, n - 30))):
        v[b, padding], y[b, padding] = 0, garbage
    assert_reference(x, y, v, kernel, device)


@DTYPES
@SHAPES
def test_a_cloud_without_charges(d, n, dtype, device, cloud):
    y, v = cloud(2, n, d).to(device, dtype), cloud(2 * n).view(2, n).to(device, dtype)
    v[0] = 0
    u, f = potential_and_field(y, y, charges=v, backend="triton")
    assert (u[0] == 0).all() and (f[0] == 0).all() and (f[1] != 0).any()


@DTYPES
@pytest.mark.parametrize("d", [3, 19])
def test_whole_blocks_of_padding_are_not_read(d, dtype, device, cloud):
    """Positions after the last charge's tile leave no trace, even where their squares overflow."""
    x, y, v = cloud(1, 5, d, dtype=dtype), cloud(1, 300, d, dtype=dtype), torch.zeros(1, 300, dtype=dtype)
    v[0, 17] = 1
    y[0, 64:] = torch.finfo(dtype).max / 4
    u, f = TRITON.evaluate(x.to(device), y.to(device), v.to(device), Riesz(1.0), True, True)
    expected_u, expected_f = references.potential_and_field(x, y[:, :64], v[:, :64], Riesz(1.0))
    assert relative_error(u, expected_u) <= TOLERANCE[dtype] and relative_error(f, expected_f) <= TOLERANCE[dtype]


@DTYPES
@SHAPES
def test_coincident_points_feel_no_force(kernel, d, n, dtype, device, cloud):
    x = cloud(1, d, dtype=dtype).expand(n, d).to(device)
    v = cloud(n, dtype=dtype).to(device)
    u, f = potential_and_field(x, x, kernel, charges=v, backend="triton")
    assert (f == 0).all()
    expected = float(v.sum()) * references.at_zero(kernel) * torch.ones_like(u)
    torch.testing.assert_close(u, expected, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


@TWO_KERNELS
@DTYPES
@SHAPES
def test_some_coincident_pairs(kernel, d, n, dtype, device, cloud):
    y, v = cloud(1, n, d, dtype=dtype), cloud(n).view(1, n).to(dtype)
    x = torch.cat((y[:, :2], cloud(1, 3, d, dtype=dtype)), 1)
    assert_reference(x, y, v, kernel, device)
    assert_reference(y, y, v, kernel, device)


@TWO_KERNELS
@SHAPES
def test_far_from_the_origin(kernel, d, n, device, cloud):
    x, y = (cloud(2, size, d, dtype=torch.float32) + 1e4 for size in (7, n))
    assert_reference(x, y, cloud(2 * n).view(2, n).float(), kernel, device)


# High dimension


@TWO_KERNELS
@pytest.mark.parametrize("closeness", [1e-6, 1e-3, 0.1])
def test_pairs_close_to_each_other(closeness, kernel, device, cloud):
    """A cloud near its target: products of coordinates alone would lose what such a pair adds.

    Errors are relative to the terms, which cancel between the clouds.
    """
    x = cloud(1, 70, 19).float()
    y = torch.cat((x, x + closeness * cloud(1, 70, 19).float()), 1)
    v = torch.full((1, 140), 1 / 70)
    v[:, 70:] *= -1
    u, f = potential_and_field(x.to(device), y.to(device), kernel, charges=v.to(device), backend="triton")
    expected_u, expected_f = references.potential_and_field(x, y, v, kernel)
    q = torch.cdist(x.double(), y.double()).square()
    u_terms, f_terms = (v[:, None] * kernel.k(q)).abs().sum(-1), (v[:, None] * kernel.phi(q) * q.sqrt()).abs().sum(-1)
    assert relative_error(u, expected_u, u_terms) <= 2e-6 and relative_error(f, expected_f, f_terms) <= 2e-6


def test_two_clusters_far_apart(device, cloud):
    x = cloud(1, 70, 19).float()
    x[:, ::2] += 1000
    assert_reference(x, x, cloud(1, 70).float(), Riesz(1.0), device)


@pytest.mark.parametrize("d", [200, 300])
def test_field_in_parts(d, device, cloud):
    """More components than one program holds."""
    x, y = cloud(1, 3, d).float(), cloud(1, MANY, d).float()
    v = cloud(1, MANY).float().abs()  # all distances are nearly equal: charges of both signs would cancel
    y[:, 5] = x[:, 1]
    assert_reference(x, y, v, Riesz(1.0), device)
    assert_tangent([x.to(device), y.to(device), v.to(device), x.to(device), y.to(device)], Riesz(1.0), 2e-6)


def test_only_tiles_with_near_pairs_are_left_out(device, cloud, monkeypatch):
    flags = []
    add = high_d.add_left_out
    monkeypatch.setattr(high_d, "add_left_out", lambda *a: (flags.append(a[4][0].clone()), add(*a)))
    x, y, v = cloud(2, 5, 19).float(), cloud(2, 170, 19).float(), cloud(340).view(2, 170).float()
    TRITON.evaluate(x.to(device), y.to(device), v.to(device), Riesz(1.0), True, True)
    y[1, 100] = x[1, 3] + 1e-3
    TRITON.evaluate(x.to(device), y.to(device), v.to(device), Riesz(1.0), True, True)
    assert flags[0].count_nonzero() == 0 and flags[1].count_nonzero() == 1
    assert flags[1][1].any()


def test_flags_of_tiles_are_bounded(device, cloud, monkeypatch):
    """Many tiles of targets are several launches with the same results, of a cloud on itself, too."""
    flags, add = [], high_d.add_left_out
    monkeypatch.setattr(high_d, "add_left_out", lambda *a: (flags.append(a[4][0].numel()), add(*a)))
    x, v = cloud(2, 70, 19).float().to(device), cloud(140).view(2, 70).float().to(device)
    s, t = cloud(2, 70, 19).float().to(device), cloud(2, 70, 19).float().to(device)
    calls = [lambda: TRITON.evaluate(x, x, v, Riesz(1.0), False, True), lambda: TRITON.tangent(x, x, v, s, t, MIXTURE)]
    for call in calls:
        monkeypatch.setattr(high_d, "FLAGS", 1 << 20)
        whole, count = call(), flags.pop()
        monkeypatch.setattr(high_d, "FLAGS", count // 2)
        parts = call()
        assert len(flags) > 1 and max(flags) <= count // 2 and sum(flags) == count
        flags.clear()
        for a, b in zip(whole, parts, strict=True):
            assert (a is None) == (b is None) and (a is None or relative_error(b, a) <= 2e-5)


# Derivatives


def inputs_of(cloud, device, m, n, d, dtype=torch.float64):
    tensors = cloud(2, m, d), cloud(2, n, d), cloud(2 * n).view(2, n), cloud(2, m, d), cloud(2, n, d)
    return [t.to(device, dtype) for t in tensors]


def tangent_terms(x, y, v, s, t, kernel):
    """The sum over j of the absolute values of all terms of (du, df)."""
    d, move = x[:, :, None] - y[:, None], s[:, :, None] - t[:, None]
    q, along = d.square().sum(-1), (d * move).sum(-1)
    phi, bend = v[:, None] * kernel.phi(q), 2 * v[:, None] * kernel.dphi(q) * along
    return (phi * along).abs().sum(-1), ((phi[..., None] * move).abs() + (bend[..., None] * d).abs()).sum(2)


def assert_tangent(inputs, kernel, tolerance):
    """Errors relative to the terms, which may cancel: on a line df = 0 for the energy distance."""
    found, double = TRITON.tangent(*inputs, kernel), [t.cpu().double() for t in inputs]
    expected = references.tangent(*double, kernel)
    for value, exact, terms in zip(found, expected, tangent_terms(*double, kernel), strict=True):
        assert value.dtype == inputs[0].dtype
        assert relative_error(value, exact, terms) <= tolerance


@DTYPES
@SHAPES
def test_tangent(kernel, d, n, dtype, device, cloud):
    """Some pairs coincident but moving apart, some padding."""
    inputs = inputs_of(cloud, device, 9, n, d, dtype)
    inputs[1][:, :3] = inputs[0][:, :3]
    inputs[2][1, 10:] = 0
    assert_tangent(inputs, kernel, TOLERANCE[dtype])


@TWO_KERNELS
@SHAPES
def test_tangent_of_a_cloud_and_itself(kernel, d, n, device, cloud):
    _, y, v, _, t = inputs_of(cloud, device, n, n, d, torch.float32)
    s = cloud(2, n, d).to(device, torch.float32)
    assert_tangent([y, y, v, s, t], kernel, TOLERANCE[torch.float32])


@DTYPES
@DIMENSIONS
def test_tangent_in_dimensions(d, n, dtype, device, cloud):
    assert_tangent(inputs_of(cloud, device, 5, n, d, dtype), Riesz(1.0), TOLERANCE[dtype])


@pytest.mark.parametrize("m, n", [(1, 1), (1, MANY), (MANY, 1), (67, 65), (3, 129)])
@pytest.mark.parametrize("d", [3, 19])
def test_tangent_sizes(m, n, d, device, cloud):
    assert_tangent(inputs_of(cloud, device, m, n, d, torch.float32), MIXTURE, TOLERANCE[torch.float32])


@SHAPES
def test_tangent_of_coincident_points(kernel, d, n, device, cloud):
    """A cusp's curvature is taken as zero there; everything stays finite."""
    y, s, t = cloud(1, 1, d).expand(1, n, d).float(), cloud(1, 5, d).float(), cloud(1, n, d).float()
    inputs = y[:, :5], y, torch.ones(1, n), s, t
    found = TRITON.tangent(*(tensor.to(device) for tensor in inputs), kernel)
    for value, expected in zip(found, references.tangent(*inputs, kernel), strict=True):
        torch.testing.assert_close(value.cpu().double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@TWO_KERNELS
@pytest.mark.parametrize("d, n", [(3, MANY), (3, 7), (19, 7)])
def test_second_derivatives_agree_with_the_dense_backend(kernel, d, n, device, cloud):
    x, y, v, move, _ = (t.requires_grad_() for t in inputs_of(cloud, device, 5, n, d))

    def derivatives(backend):
        u, f = potential_and_field(x, y, kernel, charges=v, backend=backend)
        first = torch.autograd.grad((u * u).sum() + (f * move).sum(), (x, y, v), create_graph=True)
        return *first, *torch.autograd.grad(sum((g * g).sum() for g in first), (x, y, v, move))

    for value, expected in zip(derivatives("triton"), derivatives("dense"), strict=True):
        assert relative_error(value, expected.cpu()) <= 1e-11


# Choice of the backend


def test_auto_interprets_nothing(cloud):
    assert backends.resolve("auto", cloud(3, 2), cloud(3, 2), Riesz()) != "triton"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_on_a_gpu(cloud):
    assert backends.resolve("auto", cloud(3, 2).cuda(), cloud(3, 2).cuda(), Riesz()) == "triton"


class Cosine(RadialKernel):
    """A kernel for which there is no Triton code."""


def test_refusals(cloud, monkeypatch):
    x = cloud(3, 2)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for unknown in (Cosine(), 2.0 * Cosine() + Gaussian(1.0)):
        with pytest.raises(ValueError, match=r"has no code for the kernel Cosine$"):
            squared_mmd(x, x, unknown, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"'triton' cannot run this: needs a tensor on a GPU .*got one on cpu$"):
        squared_mmd(x, x, backend="triton")


def test_an_old_triton_is_refused(cloud, monkeypatch, device):
    monkeypatch.setattr(triton, "_version", lambda: (3, 3))
    with pytest.raises(ValueError, match=r"needs triton 3\.4 or above, got 3\.3$"):
        squared_mmd(cloud(3, 2).to(device), cloud(3, 2).to(device), backend="triton")


def test_a_bandwidth_reaches_double_precision(device, cloud):
    """Shapes and weights pass through single precision in two parts."""
    kernel = 0.1 * Gaussian(0.7) + (1 / 3) * Riesz(0.9)
    assert_reference(cloud(66, 2), cloud(9, 2), cloud(9), kernel, device)
