"""The invertible lift: a formula, inverses, gradients, bad widths."""

import pytest
import torch

from ddeq_fast.networks import Lift
from problems import close, fails


def lift(*dims, gain=1.0):
    """With weights of order one, and so scales far from one."""
    torch.manual_seed(0)
    model = Lift(dims).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=gain)
    return model


def perceptron(net, x):
    return (x @ net.linear1.weight.T + net.linear1.bias).clamp(min=0) @ net.linear2.weight.T + net.linear2.bias


def test_one_layer_is_an_affine_coupling(cloud):
    model, x = lift(3, 5), cloud(4, 3)
    (layer,) = model.layers
    a, b = x[:, :2], torch.cat((x[:, 2:], torch.zeros(4, 2).double()), 1)
    expected = torch.cat((a, b * perceptron(layer.scale, a).exp() + perceptron(layer.shift, a)), 1)
    assert close(model(x), expected)


@pytest.mark.parametrize("dims", [(2, 16), (2, 3), (1, 2), (3, 4), (2, 5, 6, 16), (3, 4, 5)])
def test_inverse_undoes_the_lift(cloud, dims):
    model, x = lift(*dims, gain=0.5), cloud(2, 7, dims[0])
    y = model(x)
    assert y.shape == (2, 7, dims[-1]) and close(model.inverse(y).detach(), x, 1e-10)


def test_inverse_is_defined_off_the_image(cloud):
    """It is not the mere truncation where a coupling has touched the coordinates that remain."""
    model, y = lift(2, 3), cloud(5, 3)
    x = model.inverse(y)
    assert x.shape == (5, 2) and close(x[:, 0], y[:, 0]) and not close(x[:, 1], y[:, 1], 1e-2)


def test_scales_that_overflow_spoil_nothing_that_is_not_read(cloud):
    model, y = lift(2, 16, gain=30.0), cloud(5, 16, grad=True)
    x = model.inverse(y)
    (gradient,) = torch.autograd.grad(x.sum(), y)
    assert torch.equal(x, y[:, :2]) and gradient.isfinite().all()


def test_gradients(cloud):
    model, x = lift(2, 3, 7, gain=0.5), cloud(3, 2, grad=True)
    assert torch.autograd.gradcheck(model, x)
    assert torch.autograd.gradcheck(model.inverse, cloud(3, 7, grad=True))


@pytest.mark.parametrize("dims", [(2,), (2, 2), (3, 2), (2, 8, 8), (1, 1)])
def test_bad_widths(dims):
    with fails(ValueError, f"dims must be two or more increasing widths, the second at least 2, got {dims}"):
        Lift(dims)
    with fails(ValueError, "dims must be at least 1, got 0"):
        Lift((0, 2))
    with fails(TypeError, "dims must be a tuple of widths, got 5"):
        Lift(5)


def test_points_in_another_dimension(cloud):
    """More coordinates than the lift takes would be cut off, fewer filled up."""
    model = lift(3, 5)
    for dim in (2, 4):
        with fails(ValueError, f"x must have points in dimension 3, got shape (4, {dim})"):
            model(cloud(4, dim))
        with fails(ValueError, f"y must have points in dimension 5, got shape (4, {dim})"):
            model.inverse(cloud(4, dim))
    with fails(TypeError, "x must be a torch.Tensor, got list"):
        model([1.0])
    with fails(TypeError, "x has dtype torch.float32 but the network has torch.float64"):
        model(torch.ones(4, 3))
    with fails(ValueError, "y is on meta but the network is on cpu"):
        model.inverse(torch.ones(4, 5, dtype=torch.float64, device="meta"))
