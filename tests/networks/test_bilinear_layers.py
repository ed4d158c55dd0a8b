"""The bilinear layer against its formula, with explicit loops; equivariance, invariance, derivatives."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from ddeq_fast.networks.bilinear import Bilinear
from problems import close


@pytest.fixture
def bilinear():
    torch.manual_seed(0)
    layer = Bilinear(3, 4, 5).double()
    with torch.no_grad():
        layer.bias.normal_()
        layer.norm.weight.uniform_(0.5, 2)
        layer.norm.bias.normal_()
    return layer


def reference(layer, z, x, weights):
    """relu(norm(sum_jkl z_j alpha_jik w_l x_lk + b_i)), entry by entry."""
    alpha, bias, z, x, weights = (t.detach().numpy() for t in (layer.alpha, layer.bias, z, x, weights))
    batch, n, dim_z = z.shape
    out = np.zeros((batch, n, len(bias)))
    for b, p, i in np.ndindex(out.shape):
        out[b, p, i] = bias[i]
        for j in range(dim_z):
            for k in range(x.shape[-1]):
                out[b, p, i] += z[b, p, j] * alpha[j, i, k] * np.sum(weights[b] * x[b, :, k])
    centred = out - out.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.norm.eps)
    gain, offset = layer.norm.weight.detach().numpy(), layer.norm.bias.detach().numpy()
    return torch.from_numpy(np.maximum(scaled * gain + offset, 0))


def test_is_the_formula(bilinear, cloud):
    z, x, weights = cloud(2, 6, 3), cloud(2, 7, 4), cloud(14).view(2, 7).abs()
    value = bilinear(z, bilinear.encode(x, weights))
    assert close(value, reference(bilinear, z, x, weights))
    assert (value == 0).any() and (value > 0).any()


def test_matrix_is_linear_in_the_cloud(bilinear, cloud):
    """A of a union of clouds is the sum of theirs: it sums over points, it does not average."""
    x, y = cloud(2, 7, 4), cloud(2, 3, 4)
    ones = torch.ones(2, 10, dtype=x.dtype)
    joint = bilinear.encode(torch.cat((x, y), 1), ones)
    assert joint.shape == (2, 3, 5)
    assert close(joint, bilinear.encode(x, ones[:, :7]) + bilinear.encode(y, ones[:, :3]))


def test_equivariant_in_z_and_invariant_in_x(bilinear, cloud):
    z, x, weights = cloud(2, 6, 3), cloud(2, 7, 4), cloud(14).view(2, 7).abs()
    image = bilinear(z, bilinear.encode(x, weights))
    order_z, order_x = torch.randperm(6), torch.randperm(7)
    permuted = bilinear.encode(x[:, order_x], weights[:, order_x])
    assert close(bilinear(z[:, order_z], permuted), image[:, order_z])


def test_points_of_weight_zero_have_no_influence(bilinear, cloud):
    x, weights = cloud(2, 7, 4), torch.ones(2, 7, dtype=torch.float64)
    weights[:, 5:] = 0
    assert close(bilinear.encode(x, weights), bilinear.encode(x[:, :5], weights[:, :5]))


def test_derivatives(bilinear, cloud):
    z, x, weights = cloud(1, 3, 3, grad=True), cloud(1, 4, 4, grad=True), cloud(4).view(1, 4).abs().requires_grad_()
    assert gradcheck(lambda z, x, w, *_: bilinear(z, bilinear.encode(x, w)), (z, x, weights, *bilinear.parameters()))
