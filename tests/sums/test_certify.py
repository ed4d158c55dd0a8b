"""Sums that compare themselves with exact ones: `certify=`, what it tells and to whom."""

import pytest
import torch

from ddeq_fast import Gaussian, field, potential, potential_and_field, squared_mmd, wasserstein_gradient, witness
from ddeq_fast.sums import backends, naive
from ddeq_fast.sums.backends import registry
from ddeq_fast.sums.certify import certificates, certified_error


class Off:
    """A hundredth too much, within a tolerance of 0.1."""

    tolerance = 0.1

    def unsupported(self, x, y, kernel):
        return None

    def to_tolerance(self, tolerance):
        return self

    def evaluate(self, x, y, v, kernel, potential, field):
        u, f = naive.evaluate(x, y, v, kernel)
        return (1.01 * u if potential else None), (1.01 * f if field else None)


@pytest.fixture
def off(monkeypatch):
    """The name of that backend."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    backends.register("off", Off())
    return "off"


SUMS = {
    "potential": (potential, ["potential"]),
    "field": (field, ["field"]),
    "potential_and_field": (potential_and_field, ["potential", "field"]),
    "squared_mmd": (squared_mmd, ["squared_mmd"]),
    "witness": (lambda x, y, **options: witness(x, x, y, **options), ["potential"]),
    "wasserstein_gradient": (wasserstein_gradient, ["field"]),
}


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one cloud", "a batch"])
@pytest.mark.parametrize("name", SUMS)
def test_the_error_of_every_sum_is_found(off, cloud, name, batch):
    call, quantities = SUMS[name]
    x, y = cloud(*batch, 40, 3), cloud(*batch, 50, 3) + 0.5
    with certificates() as found:
        values = [call(x, y, kernel=Gaussian(1.0), backend=off, certify=certify) for certify in (30, None)]
    torch.testing.assert_close(*values)
    assert [one.quantity for one in found] == quantities
    for one in found:
        assert one.error.shape == one.absolute.shape == batch and one.error.dtype == torch.float64
        torch.testing.assert_close(one.error, torch.full(batch, 0.01, dtype=torch.float64))
        assert (one.backend, one.samples, one.tolerance) == (off, 30, 0.1)


def test_the_error_of_a_discrepancy_is_bounded(off, cloud):
    x, y = cloud(2, 40, 3), cloud(2, 50, 3) + 0.5
    with certificates() as found:
        value = squared_mmd(x, y, backend=off, certify=90)
    exact = squared_mmd(x, y)
    assert (found[0].absolute >= (value - exact).abs()).all() and (found[0].absolute < 0.1 * exact).all()


def test_a_certified_discrepancy_is_as_differentiable(cloud):
    x, y, a = cloud(9, 3, grad=True), cloud(7, 3) + 0.5, torch.arange(1.0, 10.0, dtype=torch.float64).requires_grad_()
    values = [squared_mmd(x, y, x_weights=a, tolerance=0.1, certify=certify) for certify in (None, 5)]
    torch.testing.assert_close(*values)
    firsts = [torch.autograd.grad(value.square(), (x, a), create_graph=True) for value in values]
    torch.testing.assert_close(*firsts)
    torch.testing.assert_close(*(torch.autograd.grad(first[0].square().sum(), (x, a)) for first in firsts))


@pytest.mark.parametrize("name", SUMS)
def test_an_error_beyond_the_tolerance_is_a_warning(off, cloud, name):
    call, quantities = SUMS[name]
    x, y = cloud(40, 3), cloud(50, 3) + 0.5
    what = quantities[0].replace("squared_mmd", "potential in squared_mmd")
    message = f"^{what} by backend 'off@0.001' is off by 0.01 at 20 targets, beyond the tolerance 0.001$"
    with pytest.warns(RuntimeWarning, match=message) as warned:
        call(x, y, backend=off, tolerance=1e-3, certify=20)
    assert len(warned) == len(quantities) and warned[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_exact_sums_pass(cloud):
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = cloud(2, 30, 3, dtype=dtype)
        with certificates() as found:
            potential_and_field(x, x, tolerance=1e-3, certify=100)
        assert all(one.error.max() < 3 * torch.finfo(dtype).eps and one.samples == 30 for one in found)
        assert found[0].backend == backends.resolve("auto@0.001", x, x, Gaussian(1.0))
        torch.testing.assert_close(found[0].error, certified_error(potential(x, x), x, x))
    with certificates() as found:
        field(x, x, certify=5)
    assert found[0].tolerance is None and found[0].samples == 5


def test_it_leaves_compiled_code(off, cloud):
    @torch.compile(backend="eager")
    def total(x):
        return 2 * potential(x, x, backend=off, certify=5).sum()

    with certificates() as found:
        total(cloud(9, 3))
    assert len(found) == 1 and float(found[0].error) == pytest.approx(0.01)


@pytest.mark.parametrize("name", SUMS)
def test_refusals(cloud, name):
    call, _ = SUMS[name]
    x, y = cloud(4, 3), cloud(5, 3)
    with pytest.raises(ValueError, match=r"^certify must be at least 1, got 0$"):
        call(x, y, tolerance=0.1, certify=0)
    with pytest.raises(TypeError, match=r"^certify must be an integer, got bool$"):
        call(x, y, tolerance=0.1, certify=True)
    with pytest.raises(ValueError, match=r"^certify finds an error that nobody is told: .* got 5 and backend 'auto'$"):
        call(x, y, certify=5)

    def total(z):
        value = call(z, y, tolerance=0.1, certify=5)
        return sum(part.sum() for part in value) if isinstance(value, tuple) else value.sum()

    for transformed in (torch.func.grad(total), lambda z: torch.func.jvp(total, (z,), (z,))):
        with pytest.raises(ValueError, match=r"^certify must be None under the transforms of torch.func"):
            transformed(x)


@pytest.mark.parametrize("call", [potential, field, squared_mmd])
def test_shards_are_refused(cloud, call):
    x = cloud(4, 3)
    with pytest.raises(ValueError, match=r"^certify must be None for backend 'ring', a sum over shards, got 5$"):
        call(x, x, backend="ring", certify=5)
