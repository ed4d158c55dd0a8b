"""A data set small enough to train on in a moment."""

import pytest

from ddeq_fast.data.dataset import Dataset
from ddeq_fast.training.config import Config
from problems import rings_and_discs

for module in ("safetensors", "tqdm"):
    pytest.importorskip(module)


@pytest.fixture(scope="session")
def rings():
    return Dataset("rings", 2, 2, *(rings_and_discs(count, seed, (5, 10), 0.5) for seed, count in enumerate((44, 20))))


@pytest.fixture
def small():
    """Settings of a tiny model: small(**changes)."""
    defaults = {
        "dim_z": 8,
        "particles": 3,
        "num_heads": 2,
        "dim_lift": 4,
        "dim_hidden": 8,
        "batch_size": 8,
        "warmup": 3,
    }

    def make(**changes):
        return Config(**{**defaults, "epochs": 3, "device": "cpu", **changes})

    return make
