"""Descriptors of points by their cloud's potential and field, and the transport map that sees them."""

import math

import pytest
import torch

from ddeq_fast.networks import Descriptors, TransportMap
from problems import close, fails, small_transport

BANDWIDTHS = (0.3, 0.6)


def reference(x, weights, bandwidths):
    """Descriptors of one cloud (m, d) point by point."""
    rows = []
    total = sum(weights)
    for i, point in enumerate(x):
        row = [*point, sum(c * c for c in point) ** 0.5]
        for sigma in bandwidths:
            k = [
                w / total * math.exp(-sum((a - b) ** 2 for a, b in zip(point, y, strict=True)) / 2 / sigma**2)
                for w, y in zip(weights, x, strict=True)
            ]
            near = sum(k[j] for j in range(len(x)) if j != i) / (1 - weights[i] / total)
            mean = [sum(share * y[axis] for share, y in zip(k, x, strict=True)) / sum(k) for axis in range(len(point))]
            shift = [(a - b) / sigma for a, b in zip(mean, point, strict=True)]
            row += [
                math.log(1 + near / sigma**2),
                sum(c * c for c in shift) ** 0.5,
                sum(a * b for a, b in zip(shift, point, strict=True)),
            ]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_descriptors_are_those_of_the_definition(cloud, dim):
    x, weights = cloud(2, 7, dim), torch.rand(2, 7, dtype=torch.float64) + 0.5
    described = Descriptors(BANDWIDTHS)(x, weights)
    assert described.shape == (2, 7, dim + Descriptors(BANDWIDTHS).width)
    for i in range(2):
        assert close(described[i], reference(x[i].tolist(), weights[i].tolist(), BANDWIDTHS))


def test_no_bandwidths_leave_the_coordinates_alone(cloud):
    x = cloud(2, 5, 3)
    assert Descriptors()(x, x[..., 0]) is x
    assert Descriptors().width == 0


def test_turns_change_coordinates_alone(cloud):
    x, weights = cloud(1, 9, 3), torch.ones(1, 9, dtype=torch.float64)
    turn = torch.linalg.qr(cloud(3, 3)).Q
    described, turned = Descriptors(BANDWIDTHS)(x, weights), Descriptors(BANDWIDTHS)(x @ turn, weights)
    assert close(turned[..., 3:], described[..., 3:])
    assert not close(turned[..., :3], described[..., :3], 1e-2)


def test_density_hardly_depends_on_how_many_points_are_drawn():
    points = torch.randn(1, 4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    few, many = (
        Descriptors((0.3,))(points[:, :m], torch.ones(1, m, dtype=torch.float64))[..., 4].mean() for m in (400, 4000)
    )
    assert abs(few / many - 1) < 0.03


@pytest.mark.parametrize("value", [0.0, 1e3, -1e30])
def test_padding_is_not_seen(cloud, value):
    x = cloud(2, 6, 3)
    weights = torch.ones(2, 6, dtype=torch.float64)
    weights[:, 4:] = 0
    padded = x.clone()
    padded[:, 4:] = value
    described = Descriptors(BANDWIDTHS)(padded, weights)
    assert close(described[:, :4], Descriptors(BANDWIDTHS)(x[:, :4], weights[:, :4]))
    assert described.isfinite().all() or value < -1e20  # squares of what is so far away overflow


@pytest.mark.parametrize("m", [1, 3])
def test_points_that_coincide(m):
    """One point alone has no others; some at one place lie in no direction of each other: finite, with gradients."""
    x = torch.full((1, m, 3), 0.2, dtype=torch.float64, requires_grad=True)
    described = Descriptors(BANDWIDTHS)(x, torch.ones(1, m, dtype=torch.float64))
    near = [math.log1p((m > 1) / sigma**2) for sigma in BANDWIDTHS]
    assert close(described[0, 0, 4::3], described.new_tensor(near))
    assert close(described[0, 0, 5::3], described.new_zeros(2))
    (gradient,) = torch.autograd.grad(described.sum(), x)
    assert gradient.isfinite().all()


def test_gradients_reach_points_and_weights(cloud):
    x, weights = cloud(2, 4, 3).requires_grad_(), torch.rand(2, 4, dtype=torch.float64).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(Descriptors(BANDWIDTHS), (x, weights))


def test_the_transport_map_sees_them(cloud):
    """Equal coordinates in unequal company enter attention as unequal points; permutations and padding do nothing."""
    transport = small_transport(bandwidths=BANDWIDTHS)
    z, x = cloud(2, 5, 8), cloud(2, 6, 2)
    image = transport(z, transport.encode(x))
    assert transport.lift_x.linear1.in_features == 2 + 7
    assert close(transport(z, transport.encode(x.flip(1))), image)
    padded, weights = torch.cat((x, x[:, :2]), 1), torch.ones(2, 8, dtype=x.dtype)
    weights[:, 6:] = 0
    assert close(transport(z, transport.encode(padded, weights)), image)
    with torch.no_grad():
        transport.lift_x.linear1.weight[:, :2] = 0  # coordinates are not seen: only turns do nothing
    turn = torch.linalg.qr(cloud(2, 2)).Q
    image = transport(z, transport.encode(x))
    assert close(transport(z, transport.encode(x @ turn)), image)
    assert not close(transport(z, transport.encode(x * 1.5)), image, 1e-3)


@pytest.mark.parametrize(
    ("bandwidths", "error", "message"),
    [
        (0.1, TypeError, "bandwidths must be a tuple or a list of numbers, got 0.1"),
        ((0.1, "0.2"), TypeError, "bandwidths must be a number, got str"),
        ((0.0,), ValueError, "bandwidths must lie in (0, inf), got 0.0"),
        ((math.nan,), ValueError, "bandwidths must lie in (0, inf), got nan"),
        ((1.0,) * 65, ValueError, "bandwidths must be at most 64, got 65"),
    ],
)
def test_bad_bandwidths(bandwidths, error, message):
    with fails(error, message):
        TransportMap(bandwidths=bandwidths)
