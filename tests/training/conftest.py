"""A data set small enough to train on in a moment."""

import pytest
import torch

from ddeq_fast.config import Config
from ddeq_fast.data.dataset import Dataset, Split, generator

for module in ("safetensors", "tqdm"):
    pytest.importorskip(module)


def _split(count, seed):
    """Rings (label 0) and discs (label 1) of 5 to 9 points."""
    draw = generator(seed)
    clouds, labels = [], torch.arange(count) % 2
    for label in labels.tolist():
        n = int(torch.randint(5, 10, (), generator=draw))
        angle = torch.rand(n, generator=draw) * 6.28
        radius = 1.0 if label == 0 else 0.5 * torch.rand(n, generator=draw)
        clouds.append(torch.stack((angle.cos() * radius, angle.sin() * radius), 1))
    return Split(clouds, [torch.ones(len(cloud)) for cloud in clouds], labels)


@pytest.fixture(scope="session")
def rings():
    return Dataset("rings", 2, 2, _split(44, 0), _split(20, 1))


@pytest.fixture
def small():
    """Settings of a tiny model: small(**changes)."""
    defaults = {"dim_z": 8, "particles": 3, "heads": 2, "dim_lift": 4, "dim_hidden": 8, "batch_size": 8, "warmup": 3}

    def make(**changes):
        return Config(**{**defaults, "epochs": 3, "device": "cpu", **changes})

    return make
