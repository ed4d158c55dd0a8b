"""Compiled sums above eight dimensions: matrix products of tiles, near pairs apart, whatever was in their memory.

Programs are traced and not compiled, which takes long, but for one test; others are in `test_matrix` and
`test_near_points`.
"""

import functools
import shutil

import pytest
import torch

from ddeq_fast import Gaussian, Laplacian, Riesz, squared_mmd
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import compiled, dense, memory, products, programs

MIXTURE = 0.5 * Riesz(1.0) + 2.0 * Gaussian(1.7) + -0.25 * Laplacian(0.6)
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-14}


@pytest.fixture(autouse=True)
def no_dense_sums(monkeypatch):
    """Nothing falls back, a tile's memory holds no numbers at first, and programs are of this test alone."""

    def refuse(*_):
        raise AssertionError("fell back to the dense backend")

    plain = products._Tile.matrices

    def poisoned(self, shape):
        return [matrix.fill_(torch.nan) for matrix in plain(self, shape)]

    monkeypatch.setattr(products._Tile, "matrices", poisoned)
    monkeypatch.setattr(programs, "_warn_once", refuse)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    programs._compiled.cache_clear()
    yield
    programs._compiled.cache_clear()


def compare(x, y, v, kernel, s, t, tolerance=None):
    """Potential, field and their tangents against the dense backend in float64, norm-wise."""
    tolerance = tolerance or TOLERANCE[x.dtype]
    itself = x is y
    found = [*compiled.evaluate(x, y, v, kernel, True, True), *compiled.tangent(x, y, v, s, t, kernel)]
    found += [compiled.evaluate(x, y, v, kernel, True, False)[0], compiled.evaluate(x, y, v, kernel, False, True)[1]]
    dtype = x.dtype
    x, y, v, s, t = (tensor.double() for tensor in (x, y, v, s, t))
    y = x if itself else y
    exact = [*dense.evaluate(x, y, v, kernel, True, True), *dense.tangent(x, y, v, s, t, kernel)]
    for value, expected in zip(found, [*exact, *exact[:2]], strict=True):
        assert value.dtype == dtype and value.shape == expected.shape
        assert (value.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch, m, n, d", [(1, 37, 53, 9), (3, 53, 37, 40), (2, 5, 6, 1024), (1, 1, 7, 11)])
def test_sums_of_odd_sizes(batch, m, n, d, dtype, cloud):
    """With coincident points and padding that lies far away."""
    x, y, v = (cloud(*shape).to(dtype) for shape in ((batch, m, d), (batch, n, d), (batch, n)))
    y[:, 0], v[-1, n // 2 :] = x[:, 0], 0
    y[-1, n // 2 :] = 1e4
    compare(x, y, v, MIXTURE, cloud(batch, m, d).to(dtype), cloud(batch, n, d).to(dtype))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
def test_compiled_code(cloud, monkeypatch):
    monkeypatch.setattr(torch, "compile", torch.compile.func)
    for m, n in ((37, 53), (53, 53)):
        compare(*(cloud(*shape).float() for shape in ((2, m, 12), (2, n, 12), (2, n))), MIXTURE, *_moves(m, n, cloud))


def _moves(m, n, cloud):
    return cloud(2, m, 12).float(), cloud(2, n, 12).float()


@pytest.mark.parametrize("tile", [64, 280, products.TILE])
def test_a_cloud_on_itself_in_tiles(tile, cloud, monkeypatch):
    """Tiles on the diagonal, beside it and across it; two points coincide."""
    monkeypatch.setattr(products, "TILE", tile)
    x, v, s = cloud(2, 23, 12).float(), cloud(2, 23).float(), cloud(2, 23, 12).float()
    x[:, 7] = x[:, 2]
    compare(x, x, v, Riesz(1.0), s, s)
    compare(x, x[:, :19].clone(), v[:, :19], Riesz(1.0), s, s[:, :19])
    for padding in (1.0, 1e4):  # targets where they are, and no sources
        x[1, 20:], v[1, 20:] = padding, 0
        compare(x, x, v, Riesz(1.0), s, s)
    alike = x.clone()
    u, f = compiled.evaluate(x, x, v, Gaussian(1.3), True, True)
    torch.testing.assert_close((u, f), compiled.evaluate(x, alike, v, Gaussian(1.3), True, True))


def test_near_pairs_within_blocks_and_across(cloud, monkeypatch):
    """Each of a pair pulls at the other, with a charge of its own."""
    monkeypatch.setattr(products, "TILE", 256)
    x, v = cloud(2, 30, 12).float(), cloud(2, 30).float()
    x[:, 10:20] = x[:, :10] + 1e-3 * cloud(2, 10, 12).float()
    x[:, 21] = x[:, 20] + 1e-3
    for kernel in (Riesz(1.0), MIXTURE):
        compare(x, x, v, kernel, *[cloud(2, 30, 12).float()] * 2, tolerance=1e-5)


def test_where_tiles_do_not_fit_they_get_smaller(cloud, monkeypatch):
    monkeypatch.setattr(products, "TILE", 1600)
    plain = products._Tile.matrices

    def crowded(self, shape):
        if shape.numel() > 150:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return plain(self, shape)

    monkeypatch.setattr(products._Tile, "matrices", crowded)
    memory._warn_once.cache_clear()
    x, v, s = cloud(1, 50, 12).float(), cloud(1, 50).float(), cloud(1, 50, 12).float()
    with pytest.warns(RuntimeWarning, match="smaller tiles"):
        compare(x, x, v, Riesz(1.0), s, s)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("d", [3, 12])
def test_charges_of_any_size_of_exponentials(size, d, cloud):
    """They are raised by a power of two while they are summed, narrow kernels apart."""
    x, y, v = cloud(1, 17, d).float(), cloud(1, 19, d).float(), size * cloud(1, 19).float()
    s, t = cloud(1, 17, d).float(), cloud(1, 19, d).float()
    for kernel in (Gaussian(1.0), Laplacian(2.0) + -0.5 * Gaussian(0.7), Laplacian(1e-6)):
        compare(x, y, v, kernel, s, t, tolerance=1e-5 if size > 1e-30 else 1e-4)


@pytest.mark.parametrize("kernel", [Riesz(1.0), Riesz(0.5)], ids=str)
def test_coincident_points_exert_no_force(kernel, cloud):
    x = cloud(1, 1, 16).float().expand(1, 9, 16)
    u, f = compiled.evaluate(x, x.clone(), torch.ones(1, 9), kernel, True, True)
    assert not u.any() and not f.any()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_near_pairs_of_a_cloud_far_away(dtype, cloud):
    """Of mean 1e3, half of its points in pairs 1e-3 apart, whose forces are as large as all others together."""
    generator = torch.Generator().manual_seed(0)
    x, s, t = (torch.randn(1, 40, 32, generator=generator).to(dtype) for _ in range(3))
    x = x + 1e3
    aside = torch.nn.functional.normalize(torch.randn(1, 40, 32, generator=generator), dim=-1).to(dtype)
    y = torch.where(torch.arange(40)[:, None] < 20, x + 1e-3 * aside, x.roll(1, 1) + aside)
    compare(x, y, torch.rand(1, 40, generator=generator).to(dtype) + 0.5, Riesz(1.0), s, t)


@pytest.mark.parametrize("budget", ["200K", "1M"])
def test_sums_keep_to_the_budget(budget, cloud, monkeypatch):
    asked = []
    plain = products._Tile.matrices
    monkeypatch.setattr(products._Tile, "matrices", lambda self, shape: asked.append(shape) or plain(self, shape))
    x, v, s = cloud(1, 300, 10).float(), cloud(1, 300).float(), cloud(1, 300, 10).float()
    backends.set_memory_budget(budget)
    try:
        compare(x, x, v, Riesz(1.0), s, s)
        allowed = backends.memory_budget()
    finally:
        backends.set_memory_budget(None)
    assert max(shape.numel() for shape in asked) * 4 * products.MATRICES <= allowed


def test_inputs_stay_and_dimensions_share_code(cloud):
    for d in (9, 10, 64):
        x, y, v = cloud(1, 5, d).float(), cloud(1, 6, d).float(), cloud(1, 6).float()
        kept = [tensor.clone() for tensor in (x, y, v)]
        compiled.evaluate(x, y, v, Riesz(1.0), True, True)
        torch.testing.assert_close([x, y, v], kept, rtol=0, atol=0)
    assert programs._compiled.cache_info().currsize == 1


def test_autocast_leaves_sums_alone(cloud):
    x, y, v = cloud(1, 30, 16).float(), cloud(1, 40, 16).float(), cloud(1, 40).float()
    with torch.autocast("cpu", torch.bfloat16):
        compare(x, y, v, Riesz(1.0), x.flip(2), y)


def test_second_derivatives(cloud):
    """The Hessian of squared MMD along a direction, through autograd."""
    x, y = cloud(2, 6, 12, grad=True), cloud(2, 7, 12)
    found = []
    for backend in ("compiled", "dense"):
        (slope,) = torch.autograd.grad(squared_mmd(x, y, backend=backend).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
