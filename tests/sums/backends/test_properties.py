"""Properties of the sums, the same for every backend: agreement with float64, invariances, padding, on any clouds."""

import shutil

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from ddeq_fast import Gaussian, Riesz, potential_and_field
from ddeq_fast.sums.backends.sliced import Sliced

KERNELS = [Riesz(1.0), 0.5 * Riesz(1.0) + Gaussian(0.7)]
# Norm-wise tolerance against float64 and dimensions, for each exact backend and dtype.
EAGER = [
    ("dense", torch.float64, (1, 3, 9, 40), 1e-12),
    ("dense", torch.float32, (1, 3, 9, 40), 1e-5),
    ("ring", torch.float64, (1, 3, 9), 1e-12),
]
# Compiled or interpreted, hence slow: one dimension and few examples.
SLOW = [
    ("compiled", torch.float32, (3,), 1e-5),
    ("compiled", torch.float32, (9, 40), 1e-5),
    ("keops", torch.float64, (3,), 1e-12),
    ("triton", torch.float32, (3,), 1e-5),
]
COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of this process only, which the ring needs."""
    store = tmp_path_factory.mktemp("ring") / "store"
    dist.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _id(case):
    return f"{case[0]}-{str(case[1])[6:]}"


@pytest.fixture(scope="module", params=EAGER, ids=_id)
def eager(request):
    """(backend, dtype, dimensions, tolerance)."""
    if request.param[0] == "ring":
        request.getfixturevalue("alone")
    return request.param


@pytest.fixture(scope="module", params=SLOW, ids=_id)
def slow(request):
    """(backend, dtype, dimensions, tolerance), if it can run here."""
    name = request.param[0]
    if name in ("compiled", "keops") and not COMPILER:
        pytest.skip("needs a C++ compiler")
    if name in ("keops", "triton"):
        pytest.importorskip("pykeops" if name == "keops" else name)
    if name == "triton" and torch.cuda.is_available():
        pytest.skip("tested there on the GPU")
    return request.param


@st.composite
def clouds(draw, dimensions, least=1):
    """x (B, m, d), y (B, n, d) and charges (B, n) in float64: coincident points, padding, two scales, any offset."""
    d = draw(st.sampled_from(dimensions))
    batch, m, n = (draw(st.integers(least, high)) for high in (3, 20, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x, y, v = (
        torch.randn(*shape, generator=generator).double() for shape in ((batch, m, d), (batch, n, d), (batch, n))
    )
    same = draw(st.integers(0, min(m, n)))
    y[:, :same] = x[:, :same]
    y[:, same : same + 3] = x[:, :1] + 1e-2 * y[:, same : same + 3]
    if draw(st.booleans()):
        v[:, n // 2 :] = 0
        v[:, 0] = 1
    return x / d**0.5, y / d**0.5, v


def close(found, expected, tolerance):
    """Each to `tolerance` of the largest value; returns whether that is so of potential and field."""
    return all(
        (a.double() - b).abs().max() <= tolerance * (1 + b.abs().max()) for a, b in zip(found, expected, strict=True)
    )


def properties(sums, tolerance, x, y, v, kernel, dtype):
    """Assertions on sums(x, y, v), which is to be potential and field of the kernel in this dtype."""

    def found(x, y, v):
        return sums(*(tensor.to(dtype) for tensor in (x, y, v)))

    x, y, v = (tensor.to(dtype).double() for tensor in (x, y, v))  # what is rounded away is no error of the sums
    # Sums of charges of both signs are as good as their parts.
    tolerance = tolerance * (1 + float(v.abs().sum(-1).max()))
    expected = potential_and_field(x, y, kernel, charges=v, backend="dense")
    plain = found(x, y, v)
    assert plain[0].dtype == dtype and plain[1].shape == x.shape
    assert close(plain, expected, tolerance), "agrees with float64"
    shift = torch.full((x.shape[2],), 2.0, dtype=torch.float64)
    assert close(found(x + shift, y + shift, v), expected, 4 * tolerance), "invariant under translation"
    order = torch.randperm(y.shape[1], generator=torch.Generator().manual_seed(0))
    assert close(found(x, y[:, order], v[:, order]), expected, tolerance), "invariant under permutation of the sources"
    assert close(found(x.flip(1), y, v), [part.flip(1) for part in expected], tolerance), "targets keep their places"
    w = v.roll(1, 1)
    other = potential_and_field(x, y, kernel, charges=w, backend="dense")
    combined = [2 * a - 3 * b for a, b in zip(expected, other, strict=True)]
    assert close(found(x, y, 2 * v - 3 * w), combined, 6 * tolerance), "linear in the charges"
    far = torch.cat((y, y[:, :1] + 100), 1)
    assert close(found(x, far, torch.nn.functional.pad(v, (0, 1))), expected, tolerance), "padding has no influence"


def check(case, data, kernel, least=1):
    name, dtype, dimensions, tolerance = case
    x, y, v = data.draw(clouds(dimensions, least))

    def sums(x, y, v):
        return potential_and_field(x, y, kernel, charges=v, backend=name)

    properties(sums, tolerance, x, y, v, kernel, dtype)


@settings(max_examples=8)
@given(data=st.data())
def test_eager_backends(eager, data):
    check(eager, data, data.draw(st.sampled_from(KERNELS)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=2)
@given(data=st.data())
def test_slow_backends(slow, data):
    """Sizes of one are code of their own to the compiler: tested elsewhere."""
    check(slow, data, Riesz(1.0), least=2)


@settings(max_examples=15)
@given(data=st.data())
def test_sliced_within_its_own_error_estimate(data):
    """The mean of its estimates over the targets of a cloud is off by a few of its standard errors at most."""
    x, y, v = data.draw(clouds((1, 2, 3, 8)))
    sliced = Sliced(16, seed=data.draw(st.integers(0, 1000)))
    estimate = sliced.estimate(x, y, v)
    u, f = potential_and_field(x, y, Riesz(1.0), charges=v, backend="dense")
    rounding = 1e-10 * (1 + v.abs().sum(-1))
    off = (estimate.u - u).square().mean(1).sqrt(), (estimate.f - f).square().sum(2).mean(1).sqrt()
    for distance, error in zip(off, (estimate.u_error, estimate.f_error), strict=True):
        assert (distance <= 8 * error + rounding).all()


@settings(max_examples=10)
@given(data=st.data())
def test_sliced_in_one_dimension_is_exact(data):
    x, y, v = data.draw(clouds((1,)))

    def sums(x, y, v):
        return potential_and_field(x, y, charges=v, backend="sliced")

    properties(sums, 1e-11, x, y, v, Riesz(1.0), torch.float64)
