"""Forces between points that lie near each other, far from the others: products of coordinates would cancel."""

import shutil

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Gaussian, Riesz, potential_and_field
from ddeq_fast.sums.backends import dense
from ddeq_fast.sums.operators import tangent

SOURCES = 70  # above what Triton sums one source at a time
COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))
# A pair that is not near may lose as much as 64 units of rounding, and there are some roundings to each.
BOUND = {torch.float32: 256 * 2.0**-23, torch.float64: 256 * 2.0**-52}


@pytest.fixture(params=["dense", "triton", "keops", "compiled"])
def backend(request):
    if request.param in ("keops", "compiled") and not COMPILER:
        pytest.skip("needs a C++ compiler")
    if request.param in ("keops", "triton"):
        pytest.importorskip({"keops": "pykeops", "triton": "triton"}[request.param])
    if request.param == "triton" and torch.cuda.is_available():
        pytest.skip("tested there on the GPU")
    return request.param


def scene(name, d, dtype):
    """Targets and sources (1, n, d), each target near a source."""
    generator = torch.Generator().manual_seed(d)
    y = torch.randn(1, SOURCES, d, generator=generator).to(dtype)
    x = y[:, :8].clone()
    if name == "relative":
        x = x * (1 + 1e-6)
    elif name == "offset":  # where centring rounds
        y, x = y + 100, x + 100 + 1e-4
    elif name == "clusters":  # a thousand times as far from each other as they are wide
        y[:, ::2, 0] += 1e3
        x = y[:, :8] + torch.randn(1, 8, d, generator=generator).to(dtype) * 1e-2
    return x, y


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kernel", [Riesz(1.0), Gaussian(2.0)], ids=repr)
@pytest.mark.parametrize("name", ["relative", "offset", "clusters"])
@pytest.mark.parametrize("d, dtype", [(3, torch.float32), (9, torch.float32), (40, torch.float32), (9, torch.float64)])
def test_every_force_is_right(name, d, dtype, kernel, backend):
    if backend in ("compiled", "keops") and kernel != Riesz(1.0):
        pytest.skip("compiling takes long")
    x, y = scene(name, d, dtype)
    v = torch.randn(1, SOURCES, generator=torch.Generator().manual_seed(0)).to(dtype)
    u, f = potential_and_field(x, y, kernel, charges=v, backend=backend)
    expected_u, expected_f = references.potential_and_field(x, y, v, kernel)
    difference = x.double()[:, :, None] - y.double()[:, None]
    q = difference.square().sum(-1)
    terms = (v.double()[:, None] * kernel.phi(q)).abs() * q.sqrt()
    error = np.linalg.norm(f.double().numpy() - expected_f, axis=-1)
    assert (error <= BOUND[dtype] * terms.sum(-1).numpy()).all()
    sizes = (v.double()[:, None] * kernel.k(q)).abs().sum(-1).numpy()
    assert (np.abs(u.double().numpy() - expected_u) <= BOUND[dtype] * sizes).all()


@pytest.mark.parametrize("name", ["relative", "offset", "clusters"])
@pytest.mark.parametrize("backend", ["dense", "triton", "compiled"], indirect=True)
def test_derivatives_of_forces(name, backend):
    """Norm-wise, relative to the forces' slopes at the nearest points."""
    x, y = scene(name, 12, torch.float32)
    v = torch.randn(1, SOURCES, generator=torch.Generator().manual_seed(0))
    s, t = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), torch.zeros_like(y)
    _, found = tangent(x, y, v, s, t, Riesz(1.0), backend)
    _, expected = tangent(*(tensor.double() for tensor in (x, y, v, s, t)), Riesz(1.0), "dense")
    assert ((found.double() - expected).norm(dim=-1) <= 1e-4 * expected.norm(dim=-1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_points_have_the_potential_of_their_differences(dtype, cloud):
    """Without a field: of a cloud and one beside it, and padding where squares would overflow."""
    x = cloud(2, 5, 40, dtype=dtype)
    y = torch.cat((x * (1 + 1e-6), cloud(2, 7, 40, dtype=dtype)), 1)
    v = cloud(2, 12, dtype=dtype)
    y[:, -2:], v[:, -2:] = float(torch.finfo(dtype).max) / 4, 0
    u = dense.evaluate(x, y, v, Riesz(1.0), True, False)[0]
    difference = x.double()[:, :, None] - y.double()[:, None, :-2]
    terms = v.double()[:, None, :-2] * difference.norm(dim=-1)
    bound = 8 * torch.finfo(dtype).eps * terms.abs().sum(-1)
    assert ((u.double() + terms.sum(-1)).abs() <= bound).all()
