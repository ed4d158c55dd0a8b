"""Fixtures of the kernel tests: where to run, and memory that starts out as garbage."""

import pytest
import torch

pytest.importorskip("triton")

CUDA = torch.cuda.is_available()


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(CUDA, reason="kernels are compiled, not interpreted")),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a GPU")]),
    ]
)
def device(request):
    """The CPU under Triton's interpreter, or a GPU."""
    return request.param


@pytest.fixture(autouse=True)
def garbage(monkeypatch):
    """Uninitialised memory holds NaN: what a kernel fails to write, or reads unwritten, shows."""

    def poisoned(allocate):
        def call(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max // 2)

        return call

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
