"""The operators inside torch: opcheck, torch.compile without graph breaks, autocast, kernels as text."""

import pytest
import torch

from ddeq_fast import Gaussian, Mixture, RadialKernel, Riesz, field, potential_and_field, squared_mmd
from ddeq_fast.library import decode, encode, energy_op, evaluate_op, tangent_op


class Cosine(RadialKernel):
    """A kernel of the user's own: cos(q)."""

    def k(self, q):
        return torch.cos(q)

    def phi(self, q):
        return -2 * torch.sin(q)

    def dphi(self, q):
        return -2 * torch.cos(q)


def test_kernels_survive_encoding(kernel):
    assert decode(encode(kernel)).terms() == kernel.terms()


def test_kernels_of_own_classes_survive_encoding():
    mixture = 0.5 * Cosine() + Riesz(1.0)
    assert decode(encode(mixture)) == mixture
    mine = Cosine()
    assert decode(encode(mine)) is mine and encode(mine) == encode(mine)


def test_a_kernel_of_ones_own_is_differentiable(cloud):
    x, y = cloud(2, 4, 3, grad=True), cloud(2, 5, 3, grad=True)
    assert torch.autograd.gradcheck(lambda x, y: potential_and_field(x, y, None, Cosine()), (x, y))


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
        u, f = potential_and_field(x, y, None, compiled_kernel)
        step = x - 0.1 * f
        return squared_mmd(step, y, compiled_kernel, x_mask=mask).sum() + u.sum()

    x, y = cloud(2, 4, 3, grad=True), cloud(2, 5, 3)
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(loss(x, y, mask), x)
    (gradient,) = torch.autograd.grad(compiled(x, y, mask), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(compiled(x, y, mask), loss(x, y, mask), rtol=1e-12, atol=1e-12)


def test_the_kernel_may_change_between_calls_of_compiled_code(cloud):
    compiled = torch.compile(lambda x, sigma: field(x, x, None, Gaussian(sigma)), fullgraph=True, backend="aot_eager")
    x = cloud(5, 2)
    for sigma in (0.5, 2.0):
        torch.testing.assert_close(compiled(x, sigma), field(x, x, None, Gaussian(sigma)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_reaches_neither_sums_nor_gradients(dtype, cloud):
    x, y = cloud(2, 7, 3, dtype=dtype, grad=True), cloud(2, 9, 3, dtype=dtype)
    (expected,) = torch.autograd.grad(squared_mmd(x, y).sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad(squared_mmd(x, y).sum(), x)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
