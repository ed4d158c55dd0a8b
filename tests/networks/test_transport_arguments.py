"""What a transport map is given: sizes and their defaults, clouds, masks, anchors; each is refused by name."""

import pytest
import torch

from ddeq_fast.networks import TransportMap
from problems import close, fails, small_transport

X = torch.zeros(2, 4, 2)
ANCHORS = torch.zeros(2, 3, 8)


@pytest.mark.parametrize(
    ("points", "weights", "error", "message"),
    [
        (ANCHORS[0], None, ValueError, "anchors.points must have shape (2, m, 8), got (3, 8)"),
        (ANCHORS[:1], None, ValueError, "anchors.points must have shape (2, m, 8), got (1, 3, 8)"),
        (ANCHORS[..., :7], None, ValueError, "anchors.points must have shape (2, m, 8), got (2, 3, 7)"),
        (ANCHORS / 0, None, ValueError, "anchors.points must be finite, got 48 NaN or infinite values of 48"),
        (ANCHORS.double(), None, TypeError, "anchors.points has dtype torch.float64 but the network has torch.float32"),
        (ANCHORS.to("meta"), None, ValueError, "anchors.points is on meta but the network is on cpu"),
        (ANCHORS.numpy(), None, TypeError, "anchors.points must be a torch.Tensor, got ndarray"),
        (ANCHORS, torch.ones(2, 4), ValueError, "anchors.weights must have shape (2, 3), got (2, 4)"),
        (ANCHORS, -torch.ones(2, 3), ValueError, "anchors.weights must be nonnegative, got a minimum of -1"),
        (
            ANCHORS,
            torch.ones(2, 3).long(),
            TypeError,
            "anchors.weights has dtype torch.int64 but its cloud has torch.float32",
        ),
    ],
)
def test_bad_anchors(points, weights, error, message):
    transport = small_transport(dtype=torch.float32)
    with fails(error, message):
        transport.anchored(transport.encode(X), points, weights)


@pytest.mark.parametrize("context", [None, (1, 2), torch.ones(2)])
def test_anchors_need_a_context(context):
    with fails(TypeError, f"context must be a Context, of TransportMap.encode, got {type(context).__name__}"):
        small_transport().anchored(context, ANCHORS.double())


@pytest.mark.parametrize(
    ("x", "weights", "error", "message"),
    [
        (X[0], None, ValueError, "x must have shape (B, m, 2), got (4, 2)"),
        (X[..., :1], None, ValueError, "x must have points in dimension 2, got 1"),
        (X[:, :0], None, ValueError, "x is an empty cloud: shape (2, 0, 2)"),
        (X.long(), None, TypeError, "x must have a floating-point dtype, got torch.int64"),
        (X.numpy(), None, TypeError, "x must be a torch.Tensor, got ndarray"),
        (X.double(), None, TypeError, "x has dtype torch.float64 but the network has torch.float32"),
        (X.to("meta"), None, ValueError, "x is on meta but the network is on cpu"),
        (X / 0, None, ValueError, "x must be finite, got 16 NaN or infinite values of 16"),
        (X, torch.zeros(2, 4), ValueError, "weights leaves no point in cloud 0, 1 of the batch"),
        (X, -torch.ones(2, 4), ValueError, "weights must be nonnegative, got a minimum of -1"),
        (X, torch.ones(2, 3), ValueError, "weights must have shape (2, 4), got (2, 3)"),
    ],
)
def test_bad_input(x, weights, error, message):
    with fails(error, message):
        small_transport(dtype=torch.float32).encode(x, weights)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_heads": 3}, ValueError, "num_heads must divide dim_z = 8, got 3"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"dropout": 1.0}, ValueError, "dropout must lie in [0, 1), got 1.0"),
        ({"dropout": -0.1}, ValueError, "dropout must lie in [0, 1), got -0.1"),
        ({"dim_lift": (4, 0, 8)}, ValueError, "dim_lift must be at least 1, got 0"),
        ({"dim_lift": (4, 8)}, TypeError, "dim_lift must be three widths, got (4, 8)"),
        ({"dim_lift": 4}, TypeError, "dim_lift must be three widths, got 4"),
        ({"dim_hidden": 0}, ValueError, "dim_hidden must be at least 1, got 0"),
        ({"dim_final": 1.5}, TypeError, "dim_final must be an integer, got float"),
        ({"self_layers": -1}, ValueError, "self_layers must be at least 0, got -1"),
        ({"cross_layers": -1}, ValueError, "cross_layers must be at least 0, got -1"),
        ({"x_layers": True}, TypeError, "x_layers must be an integer, got bool"),
        ({"dim_hidden": 10**30}, ValueError, f"dim_hidden must be at most 1048576, got {10**30}"),
        ({"dim_lift": (4, 4, 10**7)}, ValueError, "dim_lift must be at most 1048576, got 10000000"),
        ({"x_layers": 1001}, ValueError, "x_layers must be at most 1000, got 1001"),
        ({"num_heads": 2.0}, TypeError, "num_heads must be an integer, got float"),
        (
            {"network_dtype": "float16"},
            ValueError,
            "network_dtype must be torch.bfloat16, torch.float16 or None, got 'float16'",
        ),
        ({"attend_to_padding": "no"}, TypeError, "attend_to_padding must be True or False, got 'no'"),
        (
            {"network_dtype": torch.float64},
            ValueError,
            "network_dtype must be torch.bfloat16, torch.float16 or None, got torch.float64",
        ),
    ],
)
def test_bad_options(options, error, message):
    with fails(error, message):
        small_transport(**options)


@pytest.mark.parametrize(
    ("sizes", "message"), [((0, 2), "dim_z must be at least 1, got 0"), ((8, -1), "dim_x must be at least 1, got -1")]
)
def test_bad_dimensions(sizes, message):
    with fails(ValueError, message):
        TransportMap(*sizes)


@pytest.mark.parametrize(
    ("dim", "expected"), [(1, 1), (3, 1), (7, 1), (8, 2), (30, 6), (62, 2), (64, 16), (128, 32), (131, 1), (256, 32)]
)
def test_heads_by_default_divide_the_width_and_have_four_coordinates(dim, expected):
    transport = TransportMap(dim, 3, dim_lift=(4, 4, 4), dim_hidden=8, dim_final=8)
    assert transport.num_heads == expected
    z = torch.randn(2, 5, dim)
    assert transport(z, transport.encode(torch.randn(2, 4, 3))).shape == z.shape


def test_masks_are_weights_of_zero_and_one(cloud):
    transport, x, z = small_transport(), cloud(2, 5, 2), cloud(2, 3, 8)
    weights = torch.rand(2, 5, dtype=x.dtype) + 0.5
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    for given, expected in (
        ({"mask": mask}, mask.to(x.dtype)),
        ({"weights": mask}, mask.to(x.dtype)),
        ({"weights": weights, "mask": mask}, weights * mask),
    ):
        assert torch.equal(transport(z, transport.encode(x, **given)), transport(z, transport.encode(x, expected)))
    with fails(TypeError, "mask must have dtype torch.bool, got torch.float64"):
        transport.encode(x, mask=weights)
    with fails(ValueError, "mask leaves no point in cloud 1 of the batch"):
        transport.encode(x, mask=torch.tensor([[True] * 5, [False] * 5]))


def test_boolean_weights_of_anchors_are_a_mask(cloud):
    transport, z, points = small_transport(), cloud(2, 3, 8), cloud(2, 4, 8)
    context, mask = transport.encode(cloud(2, 5, 2)), torch.tensor([[True] * 4, [False] * 4])
    found = transport(z, transport.anchored(context, points, mask))
    assert torch.equal(found, transport(z, transport.anchored(context, points, mask.to(z.dtype))))
    assert close(found[1], transport(z, context)[1])


def test_printed_transport_tells_its_sizes():
    assert "TransportMap(\n  dim_z=8, dim_x=2, num_heads=2\n" in str(small_transport())
    assert "num_heads=2, network_dtype=torch.bfloat16\n" in str(small_transport(network_dtype=torch.bfloat16))
