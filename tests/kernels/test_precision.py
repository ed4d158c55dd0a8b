"""Matrix products of lower precision: with the interpreter's replaced by an emulation of tensor cores."""

import numpy as np
import pytest

import references
from ddeq_fast import Gaussian, Laplacian, Riesz, potential
from ddeq_fast.kernels import high_d
from ddeq_fast.sums.backends import triton

MIXTURE = 0.5 * Riesz(1.0) + 2.0 * Gaussian(1.7) + -0.25 * Laplacian(0.6)
PRECISIONS = pytest.mark.parametrize("precision, tolerance", [("tf32x3", 2e-6), ("tf32", 1e-3), ("bf16", 1e-2)])
KERNELS = pytest.mark.parametrize("kernel", [Riesz(1.0), MIXTURE], ids=["riesz_one", "mixture"])


def truncated(numbers):
    """float32 cut to the 10 fraction bits of tf32, as tensor cores read it."""
    return (numbers.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def rounded(numbers):
    """float32 rounded to the 10 fraction bits of tf32."""
    return truncated((numbers.view(np.uint32) + np.uint32(0x1000)).view(np.float32))


def emulated(a, b, precision):
    """The product of float32 matrices, or of bfloat16 ones given by their bits, as tensor cores form it."""
    if a.dtype == np.uint16:
        return (a.astype(np.uint32) << 16).view(np.float32) @ (b.astype(np.uint32) << 16).view(np.float32)
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    if precision == "TF32":
        return truncated(a) @ truncated(b)
    assert precision == "TF32x3"
    rest_a, rest_b = truncated(a - rounded(a)), truncated(b - rounded(b))
    return rest_a @ rounded(b) + rounded(a) @ rest_b + rounded(a) @ rounded(b)


@pytest.fixture(autouse=True)
def tensor_cores(device, monkeypatch):
    """On the CPU products are those of a tensor core; on a GPU they are anyway."""
    if device == "cuda":
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def create_dot(self, a, b, d, precision, _):
        product = emulated(a.data, b.data, precision.name) + d.data
        return interpreter.TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def assert_near(found, expected, tolerance):
    for value, exact in zip(found, expected, strict=True):
        assert references.relative_error(value, exact) <= tolerance


@KERNELS
@PRECISIONS
@pytest.mark.parametrize("d", [19, 128])
def test_sums(d, precision, tolerance, kernel, device, cloud):
    x, y, v = cloud(1, 40, d).float(), cloud(1, 90, d).float(), cloud(1, 90).float()
    lowered = triton._lowered(kernel)
    found = high_d.evaluate(x.to(device), y.to(device), v.to(device), *lowered, True, True, precision)
    assert_near(found, references.potential_and_field(x, y, v, kernel), tolerance)


@KERNELS
@PRECISIONS
def test_sums_of_a_cloud_and_itself(precision, tolerance, kernel, device, cloud):
    x, v = cloud(1, 70, 19).float().to(device), cloud(1, 70).float().to(device)
    found = high_d.evaluate(x, x, v, *triton._lowered(kernel), True, True, precision)
    assert_near(found, references.potential_and_field(x.cpu(), x.cpu(), v.cpu(), kernel), tolerance)


@KERNELS
@PRECISIONS
def test_tangent(precision, tolerance, kernel, device, cloud):
    inputs = [t.float() for t in (cloud(1, 20, 19), cloud(1, 90, 19), cloud(1, 90), cloud(1, 20, 19), cloud(1, 90, 19))]
    found = high_d.tangent(*(t.to(device) for t in inputs), *triton._lowered(kernel), precision)
    assert_near(found, references.tangent(*inputs, kernel), tolerance)


def test_precision_is_a_choice_of_the_backend(device, cloud):
    x, y = cloud(5, 19).float().to(device), cloud(90, 19).float().to(device)
    exact = potential(x.double(), y.double(), backend="dense")
    error = {
        name: float((potential(x, y, backend=name) - exact).norm() / exact.norm()) for name in ("triton", "triton-tf32")
    }
    assert error["triton"] <= 2e-6 < error["triton-tf32"] <= 1e-3


def test_bf16_is_for_gpus(cloud):
    with pytest.raises(ValueError, match=r"^backend 'triton-bf16' cannot run this: bf16 needs a tensor on a GPU"):
        potential(cloud(3, 19), cloud(66, 19), backend="triton-bf16")


def test_unknown_precision():
    with pytest.raises(ValueError, match=r"^precision must be one of bf16, tf32, tf32x3; got 'fp8'$"):
        triton.Triton("fp8")
