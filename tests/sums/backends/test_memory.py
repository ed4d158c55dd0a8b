"""The memory budget of matrices of pairs: setting it, keeping to it, and going on when an allocation fails."""

import warnings
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddeq_fast import Gaussian, Riesz, potential_and_field
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import dense, memory

MIXTURE = 0.5 * Riesz(1.0) + 2.0 * Gaussian(1.7)


@pytest.fixture(autouse=True)
def default_budget(monkeypatch):
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    yield
    backends.set_memory_budget(None)
    memory._warn_once.cache_clear()


class Live(TorchDispatchMode):
    """The most bytes that tensors made inside it held at any time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def free():
            self.seen.discard(key)
            self.now -= size

        weakref.finalize(storage, free)


@pytest.mark.parametrize(
    "text, size", [(4096, 4096), ("512", 512), ("1.5K", 1536), ("2MiB", 2 << 20), ("3 gb", 3 << 30)]
)
def test_budget_is_set_by_call_or_environment(text, size, monkeypatch):
    assert backends.memory_budget() == memory.DEFAULT_BUDGET
    monkeypatch.setenv(memory.VARIABLE, str(text))
    assert backends.memory_budget() == size
    backends.set_memory_budget(7)
    assert backends.memory_budget() == 7
    backends.set_memory_budget(text)
    assert backends.memory_budget() == size


@pytest.mark.parametrize("bad", ["", "much", "-1", "0", "1P", 0, -5])
def test_no_size(bad, monkeypatch):
    with pytest.raises(ValueError, match=r"^size must be a positive number of bytes or text such as '512M', got "):
        backends.set_memory_budget(bad)
    monkeypatch.setenv(memory.VARIABLE, str(bad))
    with pytest.raises(ValueError, match=r"^DDEQ_FAST_MEMORY must be a positive number of bytes"):
        potential_and_field(torch.zeros(2, 2), torch.zeros(2, 2), backend="dense")


@pytest.mark.parametrize("bad", [1.5, True, [1]])
def test_size_of_the_wrong_type(bad):
    with pytest.raises(TypeError, match=r"^size must be a number of bytes or text such as '512M', got "):
        backends.set_memory_budget(bad)


@pytest.mark.parametrize("d", [1, 3, 8, 9, 64])
@pytest.mark.parametrize("op", ["evaluate", "tangent"])
def test_no_sum_takes_more_than_the_budget(d, op, cloud):
    x, y, v = cloud(2, 700, d, dtype=torch.float32), cloud(2, 600, d, dtype=torch.float32), cloud(1200).float()
    v = v.view(2, 600)
    arguments = (MIXTURE, True, True) if op == "evaluate" else (x.clone(), y.clone(), MIXTURE)
    call = getattr(dense, op)
    plain = call(x, y, v, *arguments)
    clouds = 6 * 4 * 2 * 700 * (d + 1)
    for budget in (1 << 20, 8 << 20):
        backends.set_memory_budget(budget)
        with Live() as live:
            found = call(x, y, v, *arguments)
        assert live.peak <= budget + clouds
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)


def failing_beyond(numbers):
    """Stands for `kernel.k` on a machine where larger matrices do not fit."""

    class Small(Riesz):
        def k(self, q):
            sizes.append(q.numel())
            if q.numel() > numbers:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().k(q)

    sizes = []
    return Small(1.0), sizes


@pytest.mark.parametrize("numbers", [1, 7, 50, 200])
@pytest.mark.parametrize("d", [3, 10])
def test_what_does_not_fit_is_halved(numbers, d, cloud):
    x, y, v = cloud(2, 7, d), cloud(2, 9, d), cloud(18).view(2, 9)
    kernel, sizes = failing_beyond(numbers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = potential_and_field(x, y, kernel, charges=v, backend="dense")
    assert len(caught) == (numbers < 126)
    assert not caught or "going on with smaller tiles" in str(caught[0].message)
    assert sum(size > numbers for size in sizes) <= 7, "the smaller size holds for the tiles that follow"
    torch.testing.assert_close(found, potential_and_field(x, y, charges=v, backend="dense"), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_pair_that_does_not_fit_is_an_error(cloud):
    with pytest.raises(torch.OutOfMemoryError):
        potential_and_field(cloud(2, 3, 3), cloud(2, 3, 3), failing_beyond(0)[0], backend="dense")


def test_other_errors_pass(cloud):
    class Broken(Riesz):
        def k(self, q):
            raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"):
        potential_and_field(cloud(2, 3, 3), cloud(2, 3, 3), Broken(1.0), backend="dense")


def test_a_cpu_that_cannot_allocate_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert memory.out_of_memory(caught.value)
