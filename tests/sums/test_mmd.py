"""MMD, witness and Wasserstein gradient: golden parity, invariances, weights, derivatives."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import references
from ddeq_fast import Gaussian, Laplacian, Mixture, Riesz, mmd_distance, squared_mmd, wasserstein_gradient, witness

# d{2,3,128}/{kernel}[_padded]/{squared_mmd,grad_x,grad_y,witness_z}, float64 results of the authors' public code
# (commit 9fdbd99); a zero row of {x,y}_padded is padding.
GOLDEN = references.golden("mmd")
GOLDEN_KERNELS = {
    "riesz_r0.5": Riesz(0.5),
    "riesz_r1": Riesz(1.0),
    "riesz_r1.5": Riesz(1.5),
    "gaussian_s0.5": Gaussian(0.5),
    "gaussian_s1": Gaussian(1.0),
    "gaussian_s10": Gaussian(10.0),
}


def assert_relative(value, expected, tolerance=1e-10):
    expected = torch.as_tensor(expected)
    assert value.shape == expected.shape and value.dtype == expected.dtype
    assert (value - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("d", [2, 3, 128])
@pytest.mark.parametrize("name", GOLDEN_KERNELS)
@pytest.mark.parametrize("suffix", ["", "_padded"])
def test_golden_values_and_gradients(d, name, suffix):
    x, y = (torch.from_numpy(GOLDEN[f"d{d}/{cloud}{suffix}"]).requires_grad_() for cloud in "xy")
    masks = {f"{n}_mask": (c != 0).any(-1) for n, c in (("x", x), ("y", y))} if suffix else {}
    expected = {key: GOLDEN[f"d{d}/{name}{suffix}/{key}"] for key in ("squared_mmd", "grad_x", "grad_y")}
    value = squared_mmd(x, y, GOLDEN_KERNELS[name], **masks)
    dx, dy = torch.autograd.grad(value.sum(), (x, y))
    assert_relative(value.detach(), expected["squared_mmd"])
    assert_relative(dx, expected["grad_x"])
    assert_relative(dy, expected["grad_y"])
    points = masks["x_mask"].sum(-1) if suffix else torch.full((4,), 17)
    gradient = wasserstein_gradient(x, y, GOLDEN_KERNELS[name], **masks).detach()
    assert_relative(gradient, expected["grad_x"] * points[:, None, None].numpy() / 2)
    if suffix:
        assert not masks["x_mask"].all() and not masks["y_mask"].all()
        assert (dx[~masks["x_mask"]] == 0).all() and (gradient[~masks["x_mask"]] == 0).all()


@pytest.mark.parametrize("d", [2, 3, 128])
@pytest.mark.parametrize("name", GOLDEN_KERNELS)
def test_golden_witness(d, name):
    z, x, y = (torch.from_numpy(GOLDEN[f"d{d}/{cloud}"]) for cloud in "zxy")
    assert_relative(witness(z, x, y, GOLDEN_KERNELS[name]), GOLDEN[f"d{d}/{name}/witness_z"])


def test_against_the_reference_with_weights(kernel, cloud):
    x, y, z = cloud(2, 6, 3), cloud(2, 7, 3), cloud(2, 4, 3)
    a, b = cloud(12).view(2, 6).abs(), cloud(14).view(2, 7).abs()
    value = squared_mmd(x, y, kernel, x_weights=a, y_weights=b)
    assert_relative(value, references.squared_mmd(x, y, kernel, a, b), 1e-12)
    value = witness(z, x, y, kernel, x_weights=a, y_weights=b)
    assert_relative(value, references.witness(z, x, y, kernel, a, b), 1e-12)


def test_a_cloud_without_batch_axis_gives_a_scalar(kernel, cloud):
    x, y, z = cloud(6, 3), cloud(7, 3), cloud(4, 3)
    value = squared_mmd(x, y, kernel)
    assert value.shape == ()
    assert_relative(value, references.squared_mmd(x, y, kernel), 1e-12)
    assert_relative(witness(z, x, y, kernel), references.witness(z, x, y, kernel), 1e-12)
    assert wasserstein_gradient(x, y, kernel).shape == (6, 3)


def test_default_kernel_is_the_energy_distance(cloud):
    x, y = cloud(5, 2), cloud(6, 2)
    between = 2 * torch.cdist(x, y).mean()
    torch.testing.assert_close(squared_mmd(x, y), between - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def test_two_points_in_closed_form():
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 3.0, dtype=torch.float64)
    assert squared_mmd(x, y).item() == pytest.approx(6.0, rel=1e-15)
    assert wasserstein_gradient(x, y).item() == pytest.approx(-1.0, rel=1e-15)
    assert witness(y, x, y).item() == pytest.approx(-3.0, rel=1e-15)


# Properties, of every kernel on clouds that hypothesis draws; ties and coincident points included.

POSITIVE = [
    Riesz(0.5),
    Riesz(1.0),
    Riesz(1.5),
    Gaussian(0.8),
    Laplacian(0.9),
    Mixture(((2.0, Riesz()), (1.0, Gaussian()))),
]


@st.composite
def pairs(draw):
    """(x, y, kernel) in one to four dimensions on a coarse grid, where coincidences are common."""
    d = draw(st.integers(1, 4))

    def points():
        n = draw(st.integers(1, 7))
        grid = st.lists(st.integers(-8, 8), min_size=n * d, max_size=n * d)
        return torch.tensor(draw(grid), dtype=torch.float64).view(n, d) / 4

    return points(), points(), draw(st.sampled_from(POSITIVE))


def close(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


@given(pairs())
def test_nonnegative(pair):
    assert squared_mmd(*pair) >= -1e-13


@given(pairs())
def test_zero_between_a_cloud_and_itself(pair):
    x, _, kernel = pair
    close(squared_mmd(x, x, kernel), torch.zeros((), dtype=x.dtype))
    close(wasserstein_gradient(x, x, kernel), torch.zeros_like(x))


@given(pairs())
def test_positive_between_different_measures(pair):
    x, y, kernel = pair
    assert squared_mmd(x, y + 5, kernel) > 1e-3


@given(pairs())
def test_symmetric(pair):
    x, y, kernel = pair
    close(squared_mmd(x, y, kernel), squared_mmd(y, x, kernel))
    close(witness(x, x, y, kernel), -witness(x, y, x, kernel))


@given(pairs(), st.integers(-40, 40))
def test_translation_invariant(pair, shift):
    x, y, kernel = pair
    close(squared_mmd(x + shift / 4, y + shift / 4, kernel), squared_mmd(x, y, kernel))
    close(wasserstein_gradient(x + shift / 4, y + shift / 4, kernel), wasserstein_gradient(x, y, kernel))


@given(pairs(), st.integers(0, 1000))
def test_rotation_invariant(pair, seed):
    # Jitter parts points that coincide: rounding may part them too, and a cusp would then exert a force.
    x, y, kernel = pair
    generator = torch.Generator().manual_seed(seed)
    x, y = (c + 0.1 * torch.randn(c.shape, generator=generator, dtype=c.dtype) for c in (x, y))
    d = x.shape[-1]
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=x.dtype)).Q
    close(squared_mmd(x @ rotation, y @ rotation, kernel), squared_mmd(x, y, kernel))
    moved = wasserstein_gradient(x @ rotation, y @ rotation, kernel)
    close(moved, wasserstein_gradient(x, y, kernel) @ rotation)


@given(pairs(), st.randoms(use_true_random=False))
def test_order_of_the_points_does_not_matter(pair, random):
    x, y, kernel = pair
    i, j = random.sample(range(len(x)), len(x)), random.sample(range(len(y)), len(y))
    close(squared_mmd(x[i], y[j], kernel), squared_mmd(x, y, kernel))
    close(wasserstein_gradient(x[i], y[j], kernel), wasserstein_gradient(x, y, kernel)[i])


@given(pairs(), st.integers(1, 4), st.sampled_from([0.0, -2.5, 1e6, 1e200]))
def test_padding_has_no_influence(pair, padding, garbage):
    x, y, kernel = pair
    rows = torch.full((padding, x.shape[1]), garbage, dtype=x.dtype)
    padded = torch.cat((x, rows)).requires_grad_()
    mask = torch.arange(len(padded)) < len(x)
    value = squared_mmd(padded, y, kernel, x_mask=mask)
    close(value, squared_mmd(x, y, kernel))
    close(squared_mmd(y, padded, kernel, y_mask=mask[:, None]), squared_mmd(x, y, kernel))
    (gradient,) = torch.autograd.grad(value, padded)
    assert (gradient[len(x) :] == 0).all()
    gradient = wasserstein_gradient(padded, y, kernel, x_mask=mask)
    close(gradient[: len(x)], wasserstein_gradient(x, y, kernel))
    assert (gradient[len(x) :] == 0).all()
    close(witness(y, padded, y, kernel, x_mask=mask), witness(y, x, y, kernel))


@given(pairs(), st.data())
def test_integer_weights_equal_duplicates(pair, data):
    x, y, kernel = pair
    counts = data.draw(st.lists(st.integers(1, 3), min_size=len(x), max_size=len(x)))
    counts = torch.tensor(counts)
    repeated = x.repeat_interleave(counts, 0)
    weights = counts.to(x.dtype)
    close(squared_mmd(x, y, kernel, x_weights=weights), squared_mmd(repeated, y, kernel))
    close(witness(y, x, y, kernel, x_weights=weights), witness(y, repeated, y, kernel))
    moved = wasserstein_gradient(x, y, kernel, x_weights=weights).repeat_interleave(counts, 0)
    close(moved, wasserstein_gradient(repeated, y, kernel))


# Weights and masks


def test_only_the_ratio_of_weights_matters(kernel, cloud):
    x, y, a = cloud(2, 6, 3), cloud(2, 5, 3), cloud(12).view(2, 6).abs()
    value = squared_mmd(x, y, kernel, x_weights=a)
    close(squared_mmd(x, y, kernel, x_weights=a * torch.tensor([[7.0], [0.01]]).double()), value)
    uniform = torch.full((2, 6), 0.3, dtype=x.dtype)
    close(squared_mmd(x, y, kernel, x_weights=uniform), squared_mmd(x, y, kernel))


def test_each_cloud_of_a_batch_has_its_own_mask(kernel, cloud):
    x, y, z = cloud(3, 6, 2), cloud(3, 5, 2), cloud(3, 4, 2)
    sizes_x, sizes_y = torch.tensor([6, 1, 3]), torch.tensor([2, 5, 1])
    masks = {"x_mask": torch.arange(6) < sizes_x[:, None], "y_mask": torch.arange(5) < sizes_y[:, None]}
    value, at_z = squared_mmd(x, y, kernel, **masks), witness(z, x, y, kernel, **masks)
    for b in range(3):
        real = x[b, : sizes_x[b]], y[b, : sizes_y[b]]
        close(value[b], squared_mmd(*real, kernel))
        close(at_z[b], witness(z[b], *real, kernel))


def test_mask_and_weights_together(kernel, cloud):
    x, y, a = cloud(6, 3), cloud(5, 3), cloud(6).abs()
    mask = torch.tensor([True, False, True, True, False, True])
    value = squared_mmd(x, y, kernel, x_weights=a, x_mask=mask)
    close(value, squared_mmd(x[mask], y, kernel, x_weights=a[mask]))


def test_far_padding_in_single_precision(kernel, cloud):
    x, y, mask = cloud(6, 3, dtype=torch.float32), cloud(5, 3, dtype=torch.float32), torch.arange(6) < 4
    expected = squared_mmd(x[:4], y, kernel), wasserstein_gradient(x[:4], y, kernel)
    x[4:] = 3e38
    torch.testing.assert_close(squared_mmd(x, y, kernel, x_mask=mask), expected[0], rtol=1e-5, atol=1e-6)
    gradient = wasserstein_gradient(x, y, kernel, x_mask=mask)
    torch.testing.assert_close(gradient[:4], expected[1], rtol=1e-5, atol=1e-6)
    assert (gradient[4:] == 0).all()


def test_inputs_are_not_changed(cloud):
    x, y, mask = cloud(4, 2), cloud(5, 2), torch.arange(4) < 2
    kept = x.clone(), y.clone()
    squared_mmd(x, y, x_mask=mask), wasserstein_gradient(x, y, x_mask=mask), witness(x, x, y, x_mask=mask)
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])


# Derivatives


@pytest.mark.parametrize("weighted", [False, True])
def test_wasserstein_gradient_is_the_scaled_gradient(kernel, weighted, cloud):
    x, y = cloud(2, 6, 3, grad=True), cloud(2, 5, 3)
    a = cloud(12).view(2, 6).abs() if weighted else None
    (gradient,) = torch.autograd.grad(squared_mmd(x, y, kernel, x_weights=a).sum() / 2, x)
    mass = a / a.sum(-1, keepdim=True) if weighted else torch.full((2, 6), 1 / 6, dtype=x.dtype)
    close(wasserstein_gradient(x, y, kernel, x_weights=a).detach(), gradient / mass[..., None])


def test_witness_descends_along_the_wasserstein_gradient(kernel, cloud):
    z, x, y = cloud(4, 3, grad=True), cloud(6, 3), cloud(5, 3)
    (gradient,) = torch.autograd.grad(witness(z, x, y, kernel).sum(), z)
    at_x = x.clone().requires_grad_()
    (at_particles,) = torch.autograd.grad(witness(at_x, x, y, kernel).sum(), at_x)
    assert gradient.shape == z.shape
    close(at_particles, wasserstein_gradient(x, y, kernel))


def test_second_derivatives_in_positions_and_weights(kernel, cloud):
    inputs = [cloud(2, 3, 2), cloud(2, 4, 2), cloud(6).view(2, 3).abs() + 0.5, cloud(8).view(2, 4).abs() + 0.5]
    inputs = tuple(t.requires_grad_() for t in inputs)

    def value(x, y, a, b):
        return squared_mmd(x, y, kernel, x_weights=a, y_weights=b)

    assert gradcheck(value, inputs)
    assert gradgradcheck(value, inputs)


def test_second_derivatives_of_the_wasserstein_gradient(kernel, cloud):
    inputs = (cloud(3, 2, grad=True), cloud(4, 2, grad=True))
    assert gradcheck(lambda x, y: wasserstein_gradient(x, y, kernel), inputs)
    assert gradgradcheck(lambda x, y: wasserstein_gradient(x, y, kernel), inputs, atol=1e-4)


def test_one_pass_backward_equals_the_differentiable_one(kernel, cloud):
    x, y = cloud(2, 5, 3, grad=True), cloud(2, 6, 3, grad=True)
    a = (cloud(10).view(2, 5).abs() + 0.1).requires_grad_()
    value = squared_mmd(x, y, kernel, x_weights=a) @ torch.tensor([1.0, -2.0], dtype=x.dtype)
    plain = torch.autograd.grad(value, (x, y, a), retain_graph=True)
    tracked = torch.autograd.grad(value, (x, y, a), create_graph=True)
    for one, other in zip(plain, tracked, strict=True):
        assert not one.requires_grad and other.requires_grad
        torch.testing.assert_close(one, other.detach(), rtol=1e-13, atol=1e-14)


def test_gradients_of_the_weights_alone(kernel, cloud):
    x, y, a = cloud(5, 3), cloud(6, 3), cloud(5).abs()
    together = a.clone().requires_grad_(), x.clone().requires_grad_()
    (expected, _) = torch.autograd.grad(squared_mmd(together[1], y, kernel, x_weights=together[0]), together)
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(squared_mmd(x, y, kernel, x_weights=a), a)
    close(gradient, expected)
    close((gradient * a).sum().detach(), torch.zeros((), dtype=x.dtype))  # the mass is normalised away


def test_coincident_clouds_have_finite_derivatives(kernel, cloud):
    x = cloud(1, 2).expand(3, 2).clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    first = torch.autograd.grad(squared_mmd(x, y, kernel), (x, y), create_graph=True)
    second = torch.autograd.grad(sum((g * cloud(3, 2)).sum() for g in first), (x, y))
    assert all(torch.isfinite(g).all() for g in (*first, *second))


def test_descent_decreases_the_discrepancy(kernel, cloud):
    x, y = cloud(2, 8, 2), cloud(2, 9, 2) + 0.5
    values = [squared_mmd(x, y, kernel)]
    for _ in range(5):
        x = x - 0.02 * wasserstein_gradient(x, y, kernel)
        values.append(squared_mmd(x, y, kernel))
    assert all((later < earlier).all() for earlier, later in pairwise(values))


# The root


def test_the_root_of_clouds_apart(kernel, cloud):
    x, y, a = cloud(2, 5, 3, grad=True), cloud(2, 6, 3) + 1, cloud(10).view(2, 5).abs()
    mask = torch.tensor([[True] * 6, [True, False] * 3])
    arguments = {"x_weights": a, "y_mask": mask}
    squared = squared_mmd(x, y, kernel, **arguments)
    value = mmd_distance(x, y, kernel, **arguments)
    close(value, squared.sqrt())
    close(*(torch.autograd.grad(found.sum(), x)[0] for found in (value, squared.sqrt())))
    assert gradcheck(lambda x: mmd_distance(x, y, kernel, **arguments), x)
    assert gradgradcheck(lambda x: mmd_distance(x, y, kernel, **arguments), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("d", [2, 20])
def test_the_root_of_coincident_clouds_is_zero_and_has_no_gradient(d, dtype, kernel, cloud):
    for x in (cloud(30, d) + 3, cloud(30, d) * 1e-3, cloud(1, d).expand(30, d)):
        x = x.to(dtype).requires_grad_()
        for y in (x.detach().clone(), x.detach().flip(0), torch.cat((x, x)).detach()):
            value = mmd_distance(x, y, kernel)
            (gradient,) = torch.autograd.grad(value, x)
            assert value.dtype == dtype and 0 <= value.detach() < 1e-7
            assert gradient.isfinite().all() and gradient.abs().max() < 1e-3


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_the_root_of_near_clouds_in_single_precision(distance, kernel, cloud):
    """Where the squared discrepancy in float32 is rounding of either sign."""
    x = cloud(20, 3, dtype=torch.float32).requires_grad_()
    y = (x.detach() + distance * cloud(20, 3)).float()
    value = mmd_distance(x, y, kernel)
    (gradient,) = torch.autograd.grad(value, x)
    exact = x.detach().double().requires_grad_()
    squared = squared_mmd(exact, y.double(), kernel)
    (expected,) = torch.autograd.grad(squared.sqrt(), exact)
    torch.testing.assert_close(value, squared.sqrt().float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("unit", [1e-20, 1e-6, 1.0, 1e12])
def test_the_root_in_any_unit(unit):
    x, y = torch.zeros(1, 3), torch.full((1, 3), unit)
    torch.testing.assert_close(mmd_distance(x, y).double(), torch.tensor(2 * unit * 3**0.5).double().sqrt())


def test_a_far_point_of_no_weight_does_not_hide_the_root(kernel, cloud):
    x, y = cloud(5, 3), cloud(6, 3)
    far = torch.cat((x, torch.full((1, 3), 1e30, dtype=x.dtype)))
    close(
        mmd_distance(far, y, kernel, x_weights=torch.tensor([1.0] * 5 + [0], dtype=x.dtype)), mmd_distance(x, y, kernel)
    )


def test_the_root_refuses_what_the_square_does(cloud):
    with pytest.raises(ValueError, match=r"^y has points in dimension 2 but x in 3$"):
        mmd_distance(cloud(4, 3), cloud(4, 2))
    with pytest.raises(ValueError, match=r"^x_weights must be nonnegative, got a minimum of -1$"):
        mmd_distance(cloud(4, 3), cloud(4, 3), x_weights=-torch.ones(4, dtype=torch.float64))
