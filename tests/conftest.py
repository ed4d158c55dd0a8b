"""Fixtures and settings shared by the tests."""

import os

import pytest
import torch
from hypothesis import settings
from sample_kernels import KERNELS

torch.set_num_threads(1)
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes beside those that run tests
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which nothing has done yet
settings.register_profile("default", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.fixture(params=list(KERNELS))
def kernel(request):
    """Each elementary kernel, with a bandwidth that is not one, and a mixture."""
    return KERNELS[request.param]


@pytest.fixture
def cloud():
    """cloud(*shape, dtype=torch.float64, grad=False): normal points at unit scale in any dimension, seeded."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, dtype=torch.float64, grad=False):
        points = torch.randn(shape, generator=generator, dtype=torch.float64)
        # Unit distances in every dimension: otherwise a Gaussian vanishes in high ones and a test of it is empty.
        points = points / max(1, shape[-1]) ** 0.5 if len(shape) > 1 else points
        return points.to(dtype).requires_grad_(grad)

    return draw


@pytest.fixture
def registries(monkeypatch):
    """What a test registers is forgotten after it."""
    from ddeq_fast import data, gradients, solvers
    from ddeq_fast.sums import radial
    from ddeq_fast.sums.backends import registry
    from ddeq_fast.training import tasks

    for place, name in (
        (radial, "_REGISTERED"),
        (registry, "_REGISTRY"),
        (solvers.base.SOLVERS, "factories"),
        (gradients.base.BACKWARDS, "factories"),
        (data, "_LOADERS"),
        (tasks, "TASKS"),
    ):
        monkeypatch.setattr(place, name, dict(getattr(place, name)))
