"""Clouds of several sizes, given as lists, batch vectors and nested tensors; sums in buckets of like sizes."""

import math

import pytest
import torch

from ddeq_fast import field, in_buckets, pad, potential, squared_mmd
from problems import fails

SIZES = (4, 1, 6, 3)
OTHERS = (2, 9, 5, 1)
BATCH = torch.arange(4).repeat_interleave(torch.tensor(SIZES))


def draw(*sizes, dim=2, seed=0):
    """Clouds and positive weights that need gradients."""
    generator = torch.Generator().manual_seed(seed)
    clouds = [torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in sizes]
    weights = [torch.rand(n, generator=generator, dtype=torch.float64) + 0.1 for n in sizes]
    return [x.requires_grad_() for x in clouds], [a.requires_grad_() for a in weights]


def jagged(parts):
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


FORMS = {
    "list": lambda parts: (parts, {}),
    "tuple": lambda parts: (tuple(parts), {}),
    "nested": lambda parts: (jagged(parts), {}),
    "batch vector": lambda parts: (torch.cat(parts), {"batch": BATCH}),
    "int32": lambda parts: (torch.cat(parts), {"batch": BATCH.int()}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_form_is_the_same_batch(form, weighted):
    clouds, weights = draw(*SIZES)
    points, given = FORMS[form](clouds)
    own = FORMS[form](weights)[0] if weighted else None
    batch = pad(points, own, **given)
    assert batch.points.shape == (4, 6, 2) and batch.weights.shape == (4, 6)
    assert torch.equal(batch.points[batch.mask], torch.cat(clouds))
    assert torch.equal(batch.weights[batch.mask], torch.cat(weights) if weighted else torch.ones(14).double())
    assert not batch.points[~batch.mask].any() and (batch.mask.sum(1) == torch.tensor(SIZES)).all()
    batch.points.square().sum().backward()
    assert all(torch.equal(x.grad, 2 * x.detach()) for x in clouds)
    if weighted:
        batch.weights.sum().backward()
        assert all((a.grad == 1).all() for a in weights)


def test_masks_in_every_form():
    clouds, _ = draw(*SIZES)
    masks = [torch.arange(n) % 2 == 0 for n in SIZES]
    expected = pad(clouds, masks).mask
    assert expected.sum() == sum(int(m.sum()) for m in masks)
    assert torch.equal(pad(torch.cat(clouds), torch.cat(masks), batch=BATCH).mask, expected)
    assert torch.equal(pad(jagged(clouds), jagged(masks)).mask, expected)


def test_nested_tensors_with_holes_and_of_the_strided_layout():
    values = torch.arange(14.0).view(7, 2)
    holes = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 3, 7]), torch.tensor([2, 3]))
    assert pad(holes).points.tolist() == pad([values[:2], values[3:6]]).points.tolist()
    assert torch.equal(
        pad(torch.nested.nested_tensor([values[:2], values[2:]])).points, pad([values[:2], values[2:]])[0]
    )


POINTS = torch.zeros(14, 2)
COUNTED = "batch must count clouds from 0, none empty, got"
NONNEGATIVE = "nonnegative, got a minimum of -1"
ONE = "must be one tensor (N, d) where"
EACH = "must hold one entry a cloud, got"
WRAPPED = "got one that takes (x, y): a function f(x) is passed as lambda x: f(x)"
SINGLE = "has dtype torch.float32 but its cloud has torch.float64"
CUT = "[(1,), (3,), (4,), (6,)]: per_point cuts padding off"


@pytest.mark.parametrize(
    "clouds, given, error, message",
    [
        (POINTS, {"batch": BATCH.flip(0)}, ValueError, "batch must be sorted, got 3 before 2 at point 3"),
        (POINTS, {"batch": BATCH + (BATCH > 0)}, ValueError, "batch leaves no point in cloud 1"),
        (POINTS, {"batch": BATCH + 1}, ValueError, "batch leaves no point in cloud 0"),
        (POINTS, {"batch": BATCH - 1}, ValueError, f"{COUNTED} -1 to 2 for 14 points"),
        (POINTS, {"batch": BATCH * 99}, ValueError, f"{COUNTED} 0 to 297 for 14 points"),
        (POINTS, {"batch": BATCH[1:]}, ValueError, "batch must have shape (14,), got (13,)"),
        (POINTS, {"batch": BATCH.float()}, TypeError, "batch must hold integers, got torch.float32"),
        (POINTS, {"batch": list(SIZES)}, TypeError, "batch must be a torch.Tensor, got list"),
        (POINTS, {"batch": BATCH.to("meta")}, ValueError, "batch is on meta but clouds is on cpu"),
        (POINTS / 0, {"batch": BATCH}, ValueError, "clouds must be finite, got 28 NaN or infinite values of 28"),
        (POINTS, {"batch": BATCH, "weights": -POINTS[:, 0] - 1}, ValueError, f"weights must be {NONNEGATIVE}"),
        (POINTS, {"batch": BATCH, "weights": torch.ones(13)}, ValueError, "weights must have shape (14,), got (13,)"),
        (POINTS[None], {"batch": BATCH}, ValueError, f"clouds {ONE} batch is given, got a 3-dimensional one"),
        ([POINTS], {"batch": BATCH}, ValueError, f"clouds {ONE} batch is given, got list"),
        (POINTS, {}, ValueError, "clouds must be a list of tensors where batch is None, got shape (14, 2)"),
        (jagged([POINTS[:, 0]]), {}, ValueError, "clouds[0] must have shape (n, d), got (14,)"),
        (jagged([POINTS, POINTS[:0]]), {}, ValueError, "clouds[1] is an empty cloud: shape (0, 2)"),
        (jagged([POINTS]), {"weights": jagged([POINTS] * 2)}, ValueError, f"weights {EACH} 2 for 1 clouds"),
    ],
)  # fmt: skip
def test_bad_batches_are_refused_by_name(clouds, given, error, message):
    with fails(error, message):
        pad(clouds, **given)


def test_sums_say_how_to_give_them_nested_tensors():
    nested = torch.nested.nested_tensor([POINTS, POINTS[:3]])
    for given in (nested, jagged([POINTS, POINTS[:3]])):
        with fails(TypeError, "x must be a dense tensor, got a nested one: ddeq_fast.pad makes a padded batch of it"):
            squared_mmd(given, POINTS)


# Buckets


def of_pairs(x, y):
    return squared_mmd(x.points, y.points, x_weights=x.weights, y_weights=y.weights)


@pytest.mark.parametrize("ratio", [1.1, 2**0.5, 2, 100])
def test_discrepancies_in_buckets_are_those_of_padded_clouds(ratio):
    (x, a), (y, b) = draw(*SIZES), draw(*OTHERS, seed=1)
    found = in_buckets(of_pairs, x, y, x_weights=a, y_weights=b, ratio=ratio)
    expected = of_pairs(pad(x, a), pad(y, b))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    scale = torch.tensor([1.0, 2, 3, 4]).double()
    inputs = [*x, *y, *a, *b]
    gradients = [torch.autograd.grad((scale * each).sum(), inputs) for each in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert all(g.any() for g, leaf in zip(gradients[0], inputs, strict=True) if leaf.shape != (1,))


@pytest.mark.parametrize("function", [potential, field])
@pytest.mark.parametrize("ratio", [2**0.5, 2, 100])
def test_sums_at_points_lose_their_padding(function, ratio):
    (x, _), (y, b) = draw(*SIZES), draw(*OTHERS, seed=1)

    def sums(x, y):
        return function(x.points, y.points, charges=y.weights)

    found = in_buckets(sums, x, y, y_weights=b, ratio=ratio, per_point=True)
    expected = [function(*pair, charges=v) for *pair, v in zip(x, y, b, strict=True)]
    assert [len(part) for part in found] == list(SIZES)
    gradients = [torch.autograd.grad(sum(part.sum() for part in parts), [*x, *y, *b]) for parts in (found, expected)]
    for one, other in zip([*found, *gradients[0]], [*expected, *gradients[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_buckets_hold_like_sizes_and_every_cloud_once():
    sizes = [100, 28_000, 130, 3000, 200, 110, 16_000, 255, 2800, 101]
    seen = []

    def watched(x):
        seen.append(x.mask.sum(1).tolist())
        assert x.points.shape[1] == max(seen[-1])
        return x.mask.sum(1)

    clouds = [torch.zeros(n, 1) for n in sizes]
    for ratio, buckets in ((2.0, 5), (2**0.5, 7)):
        seen.clear()
        assert in_buckets(watched, clouds, ratio=ratio).tolist() == sizes
        assert sorted(n for bucket in seen for n in bucket) == sorted(sizes) and len(seen) == buckets
        assert all(max(bucket) <= ratio * min(bucket) for bucket in seen)
    padded = sum(len(bucket) * max(bucket) for bucket in seen)
    assert padded < 2**0.5 * sum(sizes) < 0.3 * len(sizes) * max(sizes)


@pytest.mark.parametrize(("ratio", "power"), [(2.0, 2), (2.0, 3), (2.0, 17), (10.0, 3), (2**0.5, 6)])
def test_whole_powers_begin_a_bucket(ratio, power):
    """Whose logarithms are rounded."""
    first, end = (math.ceil(ratio**k - 1e-9) for k in (power, power + 1))
    seen = []

    def watched(x):
        seen.append(x.mask.sum(1).tolist())
        return x.mask.sum(1)

    in_buckets(watched, [torch.zeros(n, 1) for n in (first - 1, first, end - 1, end)], ratio=ratio)
    assert seen == [[first - 1], [first, end - 1], [end]]


def test_batch_vectors_and_nested_tensors_in_buckets():
    (x, a), (y, _) = draw(*SIZES), draw(*OTHERS, seed=1)
    expected = in_buckets(of_pairs, x, y, x_weights=a)
    assert torch.equal(in_buckets(of_pairs, torch.cat(x), jagged(y), x_batch=BATCH, x_weights=torch.cat(a)), expected)
    numbers = torch.arange(4).repeat_interleave(torch.tensor(OTHERS))
    assert torch.equal(in_buckets(of_pairs, x, torch.cat(y), x_weights=a, y_batch=numbers), expected)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"y": draw(*OTHERS[:3])[0]}, ValueError, "y must hold as many clouds as x, 4, got 3"),
        ({"y": None, "y_weights": []}, ValueError, "y_weights must be None where y is, got list"),
        ({"y": None}, TypeError, f"function must be callable as function(x), {WRAPPED}"),
        ({"function": lambda x, y: 3.0}, TypeError, "function must return a tensor, got float"),
        ({"function": lambda x, y: x.points.sum()}, ValueError, "function must return a tensor (1, ...), got shape ()"),
        ({"function": lambda x, y: x.weights}, ValueError, f"function must return one shape a cloud, got {CUT}"),
        ({"per_point": True}, ValueError, "function must return a tensor (1, 4, ...), got shape (1,)"),
        ({"ratio": 1.0}, ValueError, "ratio must lie in (1, inf), got 1.0"),
        ({"x": [POINTS, POINTS[:0]]}, ValueError, "x[1] is an empty cloud: shape (0, 2)"),
        ({"y_weights": [torch.ones(2)] * 4}, TypeError, f"y_weights[0] {SINGLE}"),
        ({"x_batch": BATCH}, ValueError, f"x {ONE} x_batch is given, got list"),
    ],
)  # fmt: skip
def test_bad_buckets_are_refused_by_name(change, error, message):
    right = {"function": of_pairs, "x": draw(*SIZES)[0], "y": draw(*OTHERS)[0]}
    with fails(error, message):
        in_buckets(**{**right, **change})
