"""The operators inside torch: opcheck, torch.compile without graph breaks, autocast, kernels as text."""

import dataclasses
import gc
import weakref

import pytest
import torch

from ddeq_fast import (
    Gaussian,
    Mixture,
    RadialKernel,
    Riesz,
    field,
    kde_entropy,
    potential,
    potential_and_field,
    squared_mmd,
)
from ddeq_fast.sums.encoding import decode, encode
from ddeq_fast.sums.functions import energy_op, evaluate_op, tangent_op


class Cosine(RadialKernel):
    """A kernel of the user's own: cos(a q)."""

    def __init__(self, a=1.0):
        self.a = a

    def k(self, q):
        return torch.cos(self.a * q)

    def phi(self, q):
        return -2 * self.a * torch.sin(self.a * q)

    def dphi(self, q):
        return -2 * self.a**2 * torch.cos(self.a * q)


def test_kernels_survive_encoding(kernel):
    assert decode(encode(kernel)).terms() == kernel.terms()


def test_kernels_of_own_classes_survive_encoding():
    mixture = 0.5 * Cosine() + Riesz(1.0)
    assert decode(encode(mixture)) == mixture
    mine = Cosine()
    assert decode(encode(mine)) is mine and encode(mine) == encode(mine)


def test_a_kernel_of_ones_own_is_differentiable(cloud):
    x, y = cloud(2, 4, 3, grad=True), cloud(2, 5, 3, grad=True)
    assert torch.autograd.gradcheck(lambda x, y: potential_and_field(x, y, Cosine()), (x, y))


def test_kernels_made_anew_are_not_kept(cloud):
    x, dead = cloud(4, 3, grad=True), []
    for a in range(1, 20):
        kernel = Cosine(float(a))
        dead.append(weakref.ref(kernel))
        squared_mmd(x, x.detach() + a, kernel + Gaussian(1.0)).backward()
        # Each has its own value: a number is not given away again.
        assert potential(x, x, kernel)[0] == torch.cos(a * (x[0] - x).square().sum(-1)).sum()
    del kernel
    gc.collect()
    assert [one() for one in dead] == [None] * len(dead)


@pytest.mark.parametrize("function", [squared_mmd, lambda *args: potential(*args).sum()])
def test_a_graph_keeps_its_kernel(function, cloud):
    x, y = cloud(4, 3, grad=True), cloud(5, 3)
    kernel = Cosine(2.0)
    expected = torch.autograd.functional.hessian(lambda x: function(x, y, kernel), x).sum((0, 1))
    value = function(x, y, Cosine(2.0))
    gc.collect()
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    del value
    gc.collect()
    torch.testing.assert_close(torch.autograd.grad(first.sum(), x)[0], expected)


def test_a_kernel_that_cannot_be_hashed_is_as_good(cloud):
    @dataclasses.dataclass
    class Plain(Cosine):
        a: float = 1.0

    x, y = cloud(4, 3), cloud(5, 3)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Plain(2.0))
    mixed = [potential(x, y, kernel + Riesz(1.0)) for kernel in (Plain(2.0), Cosine(2.0))]
    torch.testing.assert_close(*mixed, rtol=0, atol=0)


@pytest.mark.parametrize("used_again", [False, True])
def test_a_kernel_that_was_changed_before_backward_is_refused(used_again, cloud):
    x, kernel = cloud(4, 3, grad=True), Cosine(2.0)
    value = squared_mmd(x, cloud(5, 3), kernel)
    kernel.a = 3.0
    if used_again:
        torch.testing.assert_close(potential(x, x, kernel), potential(x, x, Cosine(3.0)))
    with pytest.raises(ValueError, match=r"^kernel Cosine was changed before its derivatives were taken"):
        torch.autograd.grad(value, x, create_graph=True)


@pytest.mark.parametrize("how", ["grad", "vmap", "jvp"])
def test_parameters_of_kernels_have_no_gradients_and_say_so(how, cloud):
    x, y, one = cloud(4, 3), cloud(5, 3), torch.tensor(1.0)

    def function(a):
        return squared_mmd(x, y, Cosine(a))

    with pytest.raises(ValueError, match=r"^kernel Cosine has a parameter a that is differentiated or mapped"):
        if how == "grad":
            function(torch.nn.Parameter(one))
        elif how == "vmap":
            torch.vmap(function)(torch.ones(3))
        else:
            torch.func.jvp(function, (one,), (one,))
    assert function(one) == function(1.0)


def test_a_text_of_another_process_names_no_kernel(cloud):
    encode(Cosine())
    with pytest.raises(ValueError, match=r"^kernel number 0, of a class of your own, is no longer held by anything$"):
        decode("own:0")


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_opcheck_of_evaluate(kernel, wanted, cloud):
    x, y, v = cloud(2, 4, 3, grad=True), cloud(2, 5, 3, grad=True), cloud(10).view(2, 5).requires_grad_()
    torch.library.opcheck(evaluate_op, (x, y, v, encode(kernel), "auto", *wanted))


def test_opcheck_of_tangent(kernel, cloud):
    tensors = cloud(2, 4, 3), cloud(2, 5, 3), cloud(10).view(2, 5), cloud(2, 4, 3), cloud(2, 5, 3)
    tensors = tuple(tensor.requires_grad_() for tensor in tensors)
    torch.library.opcheck(tangent_op, (*tensors, encode(kernel), "auto"))


@pytest.mark.parametrize("with_field", [True, False])
def test_opcheck_of_energy(kernel, with_field, cloud):
    z, w = cloud(2, 4, 3, grad=with_field), cloud(8).view(2, 4).requires_grad_()
    torch.library.opcheck(energy_op, (z, w, encode(kernel), "auto", with_field))


@pytest.mark.parametrize("compiled_kernel", [Riesz(1.0), Mixture(((0.5, Riesz(0.5)), (2.0, Gaussian(0.7))))], ids=str)
def test_compiled_without_graph_breaks(compiled_kernel, cloud):
    def loss(x, y, mask):
        u, f = potential_and_field(x, y, compiled_kernel)
        step = x - 0.1 * f
        return squared_mmd(step, y, compiled_kernel, x_mask=mask).sum() + u.sum()

    x, y = cloud(2, 4, 3, grad=True), cloud(2, 5, 3)
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(loss(x, y, mask), x)
    (gradient,) = torch.autograd.grad(compiled(x, y, mask), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(compiled(x, y, mask), loss(x, y, mask), rtol=1e-12, atol=1e-12)


CHANGING = {
    "bandwidth": lambda x, a: field(x, x, Gaussian(a)),
    "exponent": lambda x, a: potential(x, x, Riesz(a)),
    "weight": lambda x, a: squared_mmd(x, 2 * x, a * Gaussian(1.0) + Riesz(1.0)),
    "entropy": lambda x, a: kde_entropy(x, 2 * a),
    "own": lambda x, a: potential(x, x, Cosine(a)),
}


@pytest.mark.parametrize(
    "name, dynamic",
    [*((name, None) for name in CHANGING), *((name, True) for name in CHANGING if name != "entropy")],  # minutes
)
def test_the_kernel_may_change_between_calls_of_compiled_code(name, dynamic, cloud):
    function, x = CHANGING[name], cloud(5, 2)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=name != "own", backend="aot_eager", dynamic=dynamic)
    found = [compiled(x, a) for a in (0.5, 0.7, 1.5)]
    torch.testing.assert_close(found, [function(x, a) for a in (0.5, 0.7, 1.5)], rtol=1e-12, atol=1e-12)
    assert not torch.equal(found[0], found[1])


def test_the_bandwidth_may_change_between_calls_of_inductor(cloud):
    compiled, x, y = torch.compile(lambda x, y, s: 2 * squared_mmd(x, y, Gaussian(s))), cloud(5, 2), cloud(6, 2)
    for sigma in (0.5, 0.7, 1.5):
        torch.testing.assert_close(compiled(x, y, sigma), 2 * squared_mmd(x, y, Gaussian(sigma)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_reaches_neither_sums_nor_gradients(dtype, cloud):
    x, y = cloud(2, 7, 3, dtype=dtype, grad=True), cloud(2, 9, 3, dtype=dtype)
    (expected,) = torch.autograd.grad(squared_mmd(x, y).sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad(squared_mmd(x, y).sum(), x)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
