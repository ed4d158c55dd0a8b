"""Discrepancies on the Triton backend: value, potential and field of a cloud on itself."""

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Gaussian, Riesz
from ddeq_fast.kernels import direct
from ddeq_fast.sums.backends import triton
from ddeq_fast.sums.encoding import encode
from ddeq_fast.sums.functions import energy_op
from references import relative_error

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3}


@pytest.mark.parametrize("kernel", [Riesz(1.0), 0.5 * Riesz(1.0) + 2.0 * Gaussian(1.7)], ids=["riesz_one", "mixture"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("d, n", [(3, 1), (3, 13), (3, 66), (19, 13), (19, 33), (19, 66), (700, 5)])
def test_value_potential_and_field(d, n, dtype, kernel, device, cloud):
    """By one program a cloud, by several, and through the sums of many sources; part of a cloud is padding."""
    z, w = cloud(2, n, d, dtype=dtype), cloud(2 * n).view(2, n).to(dtype)
    w[1, n // 2 + 1 :] = 0
    value, u, f = energy_op(z.to(device), w.to(device), encode(kernel), "triton", True)
    assert value.dtype == u.dtype == f.dtype == dtype
    exact_u, exact_f = references.potential_and_field(z, z, w, kernel)
    products = w.double().numpy() * exact_u
    # One particle alone leaves terms of zero; there a distance of zero counts 1e-19 in float32.
    assert relative_error(value, products.sum(-1), np.abs(products).sum(-1)) <= TOLERANCE[dtype]
    assert relative_error(u, exact_u) <= TOLERANCE[dtype]
    assert relative_error(f, exact_f) <= TOLERANCE[dtype]


def test_value_without_field(device, cloud):
    z, w = cloud(2, 13, 3).to(device), cloud(26).view(2, 13).to(device)
    value, u, f = energy_op(z, w, encode(Riesz(1.0)), "triton", False)
    assert f.numel() == 0
    torch.testing.assert_close((value, u), energy_op(z, w, encode(Riesz(1.0)), "triton", True)[:2])


@pytest.mark.parametrize("d, n", [(3, 20), (128, 20), (128, 64)])
def test_of_few_particles_in_one_launch(d, n, device, cloud, monkeypatch):
    launches, launch_direct = [], direct._launch
    monkeypatch.setattr(direct, "_launch", lambda *a: (launches.append(a[0]), launch_direct(*a)))
    monkeypatch.setattr(direct, "last_charge", pytest.fail)
    monkeypatch.setattr(torch.Tensor, "sum", pytest.fail)
    z, w = cloud(3, n, d).float().to(device), cloud(3 * n).view(3, n).float().to(device)
    triton.Triton().energy(z, w, Riesz(1.0), True)
    assert len(launches) == 1
