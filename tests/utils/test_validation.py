"""Bad input: every message names the argument and what it got."""

import math
import re

import numpy as np
import pytest
import torch

from ddeq_fast import field, potential, potential_and_field, squared_mmd, wasserstein_gradient, witness
from ddeq_fast.utils.validation import check_choice, check_integer, check_number, values_readable

X, Y = torch.zeros(2, 4, 3), torch.ones(2, 5, 3)
ONE_CLOUD = torch.zeros(4, 3)


def witness_at_x(x, y, **options):
    return witness(X, x, y, **options)


SUMS = [potential, field, potential_and_field]
MEASURES = [squared_mmd, wasserstein_gradient, witness_at_x]
every_sum = pytest.mark.parametrize("function", SUMS)
every_measure = pytest.mark.parametrize("function", MEASURES)
every_function = pytest.mark.parametrize("function", SUMS + MEASURES)


def fails(error, message):
    """The whole message, taken literally."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def replaced(tensor, value, *index):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@every_function
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (np.zeros((4, 3)), TypeError, "must be a torch.Tensor, got ndarray"),
        ([[0.0]], TypeError, "must be a torch.Tensor, got list"),
        (None, TypeError, "must be a torch.Tensor, got NoneType"),
        (X.long(), TypeError, "must have a floating-point dtype, got torch.int64"),
        (X.bool(), TypeError, "must have a floating-point dtype, got torch.bool"),
        (X.to(torch.complex64), TypeError, "must have a floating-point dtype, got torch.complex64"),
        (torch.zeros(3), ValueError, "must have shape (n, d) or (B, n, d), got (3,)"),
        (torch.zeros(()), ValueError, "must have shape (n, d) or (B, n, d), got ()"),
        (torch.zeros(1, 2, 4, 3), ValueError, "must have shape (n, d) or (B, n, d), got (1, 2, 4, 3)"),
        (torch.zeros(2, 0, 3), ValueError, "is an empty cloud: shape (2, 0, 3)"),
        (torch.zeros(2, 4, 0), ValueError, "is an empty cloud: shape (2, 4, 0)"),
        (torch.zeros(0, 4, 3), ValueError, "is an empty cloud: shape (0, 4, 3)"),
        (replaced(X, math.nan, 0, 0, 0), ValueError, "must be finite, got 1 NaN or infinite values of 24"),
        (replaced(X, -math.inf, 1, slice(2)), ValueError, "must be finite, got 6 NaN or infinite values of 24"),
    ],
)
def test_bad_cloud_in_either_place(function, bad, error, message):
    with fails(error, f"x {message}"):
        function(bad, Y)
    with fails(error, f"y {message}"):
        function(X, bad)


@every_function
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (Y.double(), TypeError, "y has dtype torch.float64 but x has torch.float32"),
        (Y.half(), TypeError, "y has dtype torch.float16 but x has torch.float32"),
        (Y.to("meta"), ValueError, "y is on meta but x is on cpu"),
        (Y[0], ValueError, "y has batch shape () but x has (2,)"),
        (Y[:1], ValueError, "y has batch shape (1,) but x has (2,)"),
        (Y[..., :2], ValueError, "y has points in dimension 2 but x in 3"),
    ],
)
def test_clouds_that_do_not_match(function, bad, error, message):
    with fails(error, message):
        function(X, bad)


@every_function
def test_first_cloud_on_another_device(function):
    with fails(ValueError, "y is on cpu but x is on meta"):
        function(X.to("meta"), Y)


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (X.double(), TypeError, "z has dtype torch.float64 but x has torch.float32"),
        (X.to("meta"), ValueError, "z is on meta but x is on cpu"),
        (X[0], ValueError, "z has batch shape () but x has (2,)"),
        (X[..., :1], ValueError, "z has points in dimension 1 but x in 3"),
        (X.tolist(), TypeError, "z must be a torch.Tensor, got list"),
        (replaced(X, math.nan, 0), ValueError, "z must be finite, got 12 NaN or infinite values of 24"),
    ],
)
def test_points_of_the_witness(bad, error, message):
    with fails(error, message):
        witness(bad, X, Y)


@every_sum
@pytest.mark.parametrize(
    "bad, error, message",
    [
        ([1.0] * 5, TypeError, "charges must be a torch.Tensor, got list"),
        (np.ones((2, 5)), TypeError, "charges must be a torch.Tensor, got ndarray"),
        (torch.ones(2, 4), ValueError, "charges must have shape (2, 5), got (2, 4)"),
        (torch.ones(5), ValueError, "charges must have shape (2, 5), got (5,)"),
        (torch.ones(2, 5, 1), ValueError, "charges must have shape (2, 5), got (2, 5, 1)"),
        (torch.ones(2, 5).double(), TypeError, "charges has dtype torch.float64 but its cloud has torch.float32"),
        (torch.ones(2, 5).int(), TypeError, "charges has dtype torch.int32 but its cloud has torch.float32"),
        (torch.ones(2, 5, device="meta"), ValueError, "charges is on meta but its cloud is on cpu"),
        (torch.full((2, 5), math.nan), ValueError, "charges must be finite, got 10 NaN or infinite values of 10"),
        (torch.full((2, 5), math.inf), ValueError, "charges must be finite, got 10 NaN or infinite values of 10"),
    ],
)
def test_charges(function, bad, error, message):
    with fails(error, message):
        function(X, Y, charges=bad)


@every_measure
@pytest.mark.parametrize("name, cloud", [("x", X), ("y", Y)])
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (lambda n: [1.0] * n, TypeError, "must be a torch.Tensor, got list"),
        (lambda n: torch.ones(2, n + 1), ValueError, "must have shape (2, {n}), got (2, {m})"),
        (lambda n: torch.ones(2, n).double(), TypeError, "has dtype torch.float64 but its cloud has torch.float32"),
        (lambda n: torch.ones(2, n).long(), TypeError, "has dtype torch.int64 but its cloud has torch.float32"),
        (lambda n: torch.ones(2, n, device="meta"), ValueError, "is on meta but its cloud is on cpu"),
        (
            lambda n: replaced(torch.ones(2, n), math.nan, 0, 0),
            ValueError,
            "must be finite, got 1 NaN or infinite values of {total}",
        ),
        (lambda n: replaced(torch.ones(2, n), -0.5, 1, 0), ValueError, "must be nonnegative, got a minimum of -0.5"),
        (lambda n: replaced(torch.ones(2, n), 0.0, 1), ValueError, "leaves no point in cloud 1 of the batch"),
    ],
)
def test_weights(function, name, cloud, bad, error, message):
    n = cloud.shape[1]
    with fails(error, f"{name}_weights {message.format(n=n, m=n + 1, total=2 * n)}"):
        function(X, Y, **{f"{name}_weights": bad(n)})


@every_measure
@pytest.mark.parametrize("name, cloud", [("x", X), ("y", Y)])
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (lambda n: [True] * n, TypeError, "must be a torch.Tensor, got list"),
        (lambda n: torch.ones(2, n), TypeError, "must have dtype torch.bool, got torch.float32"),
        (lambda n: torch.ones(2, n, dtype=torch.uint8), TypeError, "must have dtype torch.bool, got torch.uint8"),
        (lambda n: torch.ones(2, n + 1) > 0, ValueError, "must have shape (2, {n}), got (2, {m})"),
        (lambda n: torch.ones(n) > 0, ValueError, "must have shape (2, {n}), got ({n},)"),
        (lambda n: torch.ones(2, n, device="meta") > 0, ValueError, "is on meta but its cloud is on cpu"),
        (lambda n: torch.zeros(2, n) > 0, ValueError, "leaves no point in cloud 0, 1 of the batch"),
        (lambda n: replaced(torch.ones(2, n) > 0, False, 0), ValueError, "leaves no point in cloud 0 of the batch"),
    ],
)
def test_masks(function, name, cloud, bad, error, message):
    n = cloud.shape[1]
    with fails(error, f"{name}_mask {message.format(n=n, m=n + 1)}"):
        function(X, Y, **{f"{name}_mask": bad(n)})


def test_mask_and_weights_that_leave_nothing_together():
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0])
    with fails(ValueError, "x_mask leaves no point in cloud 0 of the batch"):
        squared_mmd(ONE_CLOUD, ONE_CLOUD, x_weights=weights, x_mask=weights == 0)


@every_function
@pytest.mark.parametrize("bad, got", [("riesz", "str"), (1.0, "float"), (torch.nn.Identity, "type")])
def test_kernel(function, bad, got):
    with fails(TypeError, f"kernel must be a RadialKernel such as Riesz(1.0), got {got}"):
        function(X, Y, kernel=bad)


def test_meta_tensors_pass_with_their_shapes():
    x, y = X.to("meta"), Y.to("meta")
    assert not values_readable(x) and values_readable(X)
    assert squared_mmd(x, y, x_mask=torch.ones(2, 4, device="meta") > 0).shape == (2,)
    assert potential(x, y).shape == (2, 4) and field(x, y).shape == (2, 4, 3)


def test_check_number():
    assert check_number("tol", 1) == 1.0 and isinstance(check_number("tol", 1), float)
    assert check_number("tol", np.float64(0.5)) == 0.5
    assert check_number("beta", 0.0, closed=True) == 0.0
    with fails(ValueError, "tol must lie in (0, inf), got 0"):
        check_number("tol", 0)
    with fails(ValueError, "beta must lie in [0, 1), got 1"):
        check_number("beta", 1, high=1.0, closed=True)
    with fails(ValueError, "beta must lie in [0, inf), got nan"):
        check_number("beta", math.nan, closed=True)
    with fails(TypeError, "tol must be a number, got bool"):
        check_number("tol", True)


def test_check_integer():
    assert check_integer("steps", 3) == 3
    assert check_integer("steps", 0, low=0) == 0
    with fails(ValueError, "steps must be at least 1, got 0"):
        check_integer("steps", 0)
    for bad, got in [(1.0, "float"), (True, "bool"), ("1", "str")]:
        with fails(TypeError, f"steps must be an integer, got {got}"):
            check_integer("steps", bad)


def test_check_choice():
    assert check_choice("mode", "a", {"a": 1, "b": 2}) == "a"
    with fails(ValueError, "mode must be one of a, b; got 'c'"):
        check_choice("mode", "c", ("b", "a"))
