"""Forward mode and the transforms of torch.func: every public function against differences and loops, never zeros."""

import pytest
import torch
from sample_kernels import KERNELS as SAMPLES
from sample_kernels import Rational
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import ddeq_fast
from ddeq_fast import (
    Gaussian,
    Riesz,
    chamfer,
    field,
    kde_entropy,
    mmd_distance,
    nearest,
    potential,
    potential_and_field,
    squared_mmd,
    wasserstein_gradient,
    witness,
)
from ddeq_fast.sums import backends

KERNELS = {"riesz": Riesz(1.5), "mixture": SAMPLES["mixture"], "own": Rational()}
MASK = torch.tensor([True, True, False, True])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y, Z = draw(4, 2), draw(3, 2, seed=1), draw(2, 2, seed=2)
V, A, B = draw(3, seed=3), draw(4, seed=4).abs() + 0.1, draw(3, seed=5).abs() + 0.1


def cases(kernel, backend="auto"):
    """name: (function of tensors, its arguments)."""
    options = {"kernel": kernel, "backend": backend}
    masked = {**options, "x_mask": MASK}
    return {
        "potential": (lambda x, y, v: potential(x, y, charges=v, **options), (X, Y, V)),
        "field": (lambda x, y, v: field(x, y, charges=v, **options), (X, Y, V)),
        "potential_and_field": (
            lambda x, y, v: torch.cat([t.flatten() for t in potential_and_field(x, y, charges=v, **options)]),
            (X, Y, V),
        ),
        "squared_mmd": (lambda x, y, a, b: squared_mmd(x, y, x_weights=a, y_weights=b, **masked), (X, Y, A, B)),
        "mmd_distance": (lambda x, y, a, b: mmd_distance(x, y, x_weights=a, y_weights=b, **masked), (X, Y, A, B)),
        "witness": (lambda z, x, y, a: witness(z, x, y, x_weights=a, **options), (Z, X, Y, A)),
        "wasserstein_gradient": (lambda x, y, a: wasserstein_gradient(x, y, x_weights=a, **masked), (X, Y, A)),
        "kde_entropy": (lambda x: kde_entropy(x, 0.8, mask=MASK, backend=backend), (X,)),
        "chamfer": (lambda x, y: chamfer(x, y, x_mask=MASK), (X, Y)),
        "nearest": (lambda x, y: nearest(x, y).squared_distance, (X, Y)),
    }


NAMES = list(cases(None))


def test_the_table_is_complete():
    sums = [name for name, room in ddeq_fast._HOME.items() if room.startswith(("sums", "distances"))]
    computing = [name for name in sums if not isinstance(getattr(ddeq_fast, name), type)]
    assert sorted(computing) == sorted(NAMES)


def differences(function, args, i, step=1e-5):
    """Jacobian of the i-th argument by central differences."""

    def at(shift):
        return function(*args[:i], args[i] + shift, *args[i + 1 :])

    basis = step * torch.eye(args[i].numel(), dtype=torch.float64).view(-1, *args[i].shape)
    columns = [(at(shift) - at(-shift)) / (2 * step) for shift in basis]
    return torch.stack(columns, -1).unflatten(-1, args[i].shape)


def near(value, expected, tolerance=1e-6):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_every_function_under_every_transform(name, kernel):
    function, args = cases(KERNELS[kernel])[name]

    def scalar(*args):
        return function(*args).square().sum()

    for i, arg in enumerate(args):

        def of_one(a, i=i):
            return function(*args[:i], a, *args[i + 1 :])

        jacobian, move = differences(function, args, i), draw(*arg.shape, seed=7)
        assert jacobian.abs().max() > 0
        near(jacfwd(function, i)(*args), jacobian)
        near(jacrev(function, i)(*args), jacobian)
        near(jvp(of_one, (arg,), (move,))[1], (jacobian * move).sum(tuple(range(-arg.dim(), 0))))
        value, pull = vjp(of_one, arg)
        near(pull(torch.ones_like(value))[0], jacobian.flatten(0, value.dim() - 1).sum(0) if value.dim() else jacobian)
        near(grad(scalar, i)(*args), differences(scalar, args, i))

        many = torch.stack((arg, 0.7 * arg, 1.3 * arg))
        dims = tuple(0 if j == i else None for j in range(len(args)))
        near(vmap(function, dims)(*args[:i], many, *args[i + 1 :]), torch.stack([of_one(a) for a in many]), 1e-12)
        gradients = [differences(scalar, (*args[:i], a, *args[i + 1 :]), i) for a in many]
        near(vmap(grad(scalar, i), dims)(*args[:i], many, *args[i + 1 :]), torch.stack(gradients))

        second = differences(grad(scalar, i), args, i)
        for curvature in (hessian, lambda f, i: jacfwd(jacfwd(f, i), i), lambda f, i: jacrev(jacfwd(f, i), i)):
            near(curvature(scalar, i)(*args), second)


@pytest.mark.parametrize("kernel", KERNELS)
def test_third_derivatives_are_the_same_in_all_modes(kernel):
    def function(x):
        return squared_mmd(x, Y, KERNELS[kernel])

    expected = jacrev(jacrev(jacrev(function)))(X)
    assert expected.abs().max() > 0
    near(jacfwd(jacfwd(jacfwd(function)))(X), expected)
    near(jacfwd(jacrev(jacfwd(function)))(X), expected)


@pytest.mark.parametrize("name", ["potential", "field", "potential_and_field", "witness", "nearest"])
def test_batched_clouds_mapped_twice(name):
    """Each argument along an axis of its own, in clouds that have a batch axis already."""
    function, args = cases(KERNELS["mixture"])[name]
    batches = [torch.stack([(1 + 0.1 * i) * arg for i in range(6)]).unflatten(0, (3, 2)) for arg in args]
    found = vmap(function)(*batches)
    loop = torch.stack([function(*(batch[i] for batch in batches)) for i in range(3)])
    near(found, loop, 1e-12)
    inner = [batch.movedim(1, -1) for batch in batches]
    near(vmap(vmap(function, in_dims=-1), in_dims=0)(*inner), vmap(vmap(function))(*batches), 1e-12)


@pytest.mark.parametrize("function", [squared_mmd, mmd_distance, chamfer, wasserstein_gradient])
def test_masks_may_be_mapped(function):
    masks = torch.tensor([[True, True, False, True], [False, True, True, True]])
    near(
        vmap(lambda mask: function(X, Y, x_mask=mask))(masks),
        torch.stack([function(X, Y, x_mask=mask) for mask in masks]),
        1e-12,
    )


def test_indices_of_nearest_points_are_mapped():
    clouds = draw(3, 5, 2)
    index = vmap(lambda x: nearest(x, Y).index)(clouds)
    assert torch.equal(index, torch.stack([nearest(x, Y).index for x in clouds]))


def test_values_that_can_be_read_are_still_checked():
    with pytest.raises(ValueError, match=r"^y must be finite, got 6 NaN or infinite values of 6$"):
        vmap(lambda x: squared_mmd(x, Y / 0))(draw(2, 4, 2))
    with pytest.raises(ValueError, match=r"^x must be finite, got 8 NaN or infinite values of 8$"):
        jvp(lambda x: squared_mmd(x / 0, Y), (X,), (X,))


# Derivatives of torch.autograd


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_dual_numbers_and_batches_of_gradients(name, kernel):
    function, args = cases(KERNELS[kernel])[name]
    inputs = tuple(arg.clone().requires_grad_() for arg in args)
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True, atol=1e-4)


def test_backward_of_a_forward_derivative():
    x, move = X.clone().requires_grad_(), draw(4, 2, seed=7)
    with forward_ad.dual_level():
        value = squared_mmd(forward_ad.make_dual(x, move), Y, KERNELS["mixture"])
        (found,) = torch.autograd.grad(forward_ad.unpack_dual(value).tangent, x)
    near(found, jvp(grad(lambda x: squared_mmd(x, Y, KERNELS["mixture"])), (X,), (move,))[1])


# Backends and precisions


@pytest.mark.parametrize("backend", ["compiled", "keops"])
def test_other_backends(backend):
    kernel = Gaussian(0.9)
    if backends.unsupported(backend, X[None], Y[None], kernel):
        pytest.skip(f"{backend} cannot run here")
    (function, args), (dense, _) = (cases(kernel, name)["squared_mmd"] for name in (backend, "dense"))
    near(jacfwd(function)(*args), jacfwd(dense)(*args), 1e-9)
    near(hessian(function)(*args), hessian(dense)(*args), 1e-9)


def test_sliced_sums_have_first_derivatives_alone():
    def discrepancy(x):
        return squared_mmd(x, Y, Riesz(1.0), backend="sliced")

    near(jvp(discrepancy, (X,), (X,))[1], (differences(discrepancy, (X,), 0) * X).sum())
    near(vmap(discrepancy)(torch.stack((X, 2 * X))), torch.stack((discrepancy(X), discrepancy(2 * X))), 1e-12)
    with pytest.raises(ValueError, match=r"^backend 'sliced' has no second derivatives"):
        hessian(discrepancy)(X)


@pytest.mark.parametrize("transform", [jacfwd, grad, lambda f: lambda x: vmap(f)(torch.stack((x, x)))])
def test_shards_are_not_transformed(transform, monkeypatch):
    monkeypatch.setattr(backends.get("ring"), "unsupported", lambda *_: None)
    with pytest.raises(ValueError, match=r"^backend 'ring' has neither forward mode nor the transforms of torch.func"):
        transform(lambda x: potential(x, Y, backend="ring").sum())(X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_with_and_without_autocast(dtype):
    x, y, move = X.to(dtype), Y.to(dtype), draw(4, 2, seed=7).to(dtype)
    expected = jvp(lambda x: squared_mmd(x, y.double()), (x.double(),), (move.double(),))[1]
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value, tangent = jvp(lambda x: squared_mmd(x, y), (x,), (move,))
            assert value.dtype == tangent.dtype == squared_mmd(x, y).dtype
            assert grad(lambda x: squared_mmd(x, y))(x).dtype == dtype
        torch.testing.assert_close(tangent.double(), expected, rtol=4e-3, atol=4e-3)


# torch.compile


TRANSFORMED = {
    "jvp": lambda f: lambda x: jvp(f, (x,), (X,))[1],
    "hessian": hessian,
    "vmap(grad)": lambda f: lambda x: vmap(grad(f))(torch.stack((x, 2 * x))),
}


@pytest.mark.parametrize("transform", TRANSFORMED)
@pytest.mark.parametrize("name", ["squared_mmd", "kde_entropy"])
def test_transforms_of_and_in_compiled_code(name, transform):
    function, args = cases(Gaussian(0.9))[name]

    def of_one(x):
        return function(x, *args[1:])

    transform = TRANSFORMED[transform]
    expected = transform(of_one)(X)
    torch._dynamo.reset()
    near(torch.compile(transform(of_one), backend="aot_eager")(X), expected)
    near(transform(torch.compile(of_one, backend="aot_eager"))(X), expected)


def test_linearize():
    _, push = torch.func.linearize(lambda x: squared_mmd(x, Y), X)
    near(push(X), jvp(lambda x: squared_mmd(x, Y), (X,), (X,))[1])
