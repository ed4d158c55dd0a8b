"""The flow of several kernels that follows the first alone, as the original code does."""

import pytest

import references
from ddeq_fast import Gaussian, Laplacian, Riesz, wasserstein_gradient
from ddeq_fast.interop.original.first_kernel import FirstKernelFlow
from ddeq_fast.solvers import FixedTarget, MMDFlow
from problems import close

STEPS = {"lr": 0.3, "max_steps": 3, "tol": 0.0, "check_every": 1}


@pytest.fixture
def clouds(cloud):
    """(start, target)."""
    return cloud(2, 4, 3), cloud(2, 6, 3) + 0.5


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("first", [Gaussian(0.5), Riesz(1.0) + Gaussian(0.5)], ids=["one term", "a mixture"])
def test_the_gradient_is_that_of_the_first_kernel(clouds, first, rescale):
    z, target = clouds
    flow = FirstKernelFlow(kernel=(first, Laplacian(2.0)), rescale=rescale, **STEPS)
    expected = z
    for _ in range(3):
        expected = expected - 0.3 * wasserstein_gradient(expected, target, first) / 2
    assert close(flow.solve(FixedTarget(target), z).particles, expected)


def test_the_residual_is_that_of_all_kernels(clouds):
    z, target = clouds
    kernels = Gaussian(0.5), Laplacian(2.0)
    info = FirstKernelFlow(kernel=kernels, relative=False, **STEPS).solve(FixedTarget(target), z)
    squared = sum(references.squared_mmd(info.particles, target, kernel) for kernel in kernels) / 2
    assert abs(info.info.residual**2 - squared).max() < 1e-12


def test_one_kernel_is_followed_as_ever(clouds):
    z, target = clouds
    found, expected = (flow(**STEPS).solve(FixedTarget(target), z).particles for flow in (FirstKernelFlow, MMDFlow))
    assert close(found, expected)
