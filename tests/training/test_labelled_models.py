"""Settings of models whose particles have labels."""

import pytest
import torch

from ddeq_fast.clouds import PointClouds
from ddeq_fast.data.dataset import Batch
from ddeq_fast.solvers import Anderson
from ddeq_fast.training.build import make_model
from ddeq_fast.training.config import Config
from ddeq_fast.training.pictures import trajectory
from problems import close, fails

SIZES = {"dim_z": 8, "num_heads": 2, "dim_lift": 4, "dim_hidden": 12, "particles": 5}


@pytest.mark.parametrize("kind", ["learned", "drawn"])
def test_labels_of_a_classifier(kind):
    model = make_model(Config(dim_label=3, labels=kind, **SIZES), 2, 4)
    assert model.ddeq.labels.shape == (5, 3) and model.ddeq.labels.requires_grad == (kind == "learned")
    assert make_model(Config(**SIZES), 2, 4).ddeq.labels is None


def test_labels_of_a_completer_are_points():
    model = make_model(Config(task="complete", dim_label=2, **SIZES), 2, 4)
    assert model.ddeq.dim_label == 2 and model.ddeq.labels is None
    with fails(ValueError, "transport must have a dim_label of 0 or dim_x = 2, got 3"):
        make_model(Config(task="complete", dim_label=3, **SIZES), 2, 4)


def test_the_way_that_is_drawn_ends_at_the_equilibrium(cloud):
    torch.manual_seed(0)
    model = make_model(Config(dim_label=3, **SIZES), 2, 4).double()
    batch = Batch(PointClouds(cloud(3, 6, 2), torch.ones(3, 6).double()), torch.zeros(3).long(), torch.arange(3))
    solver = model.ddeq.solver = Anderson(tol=1e-4, max_steps=200)
    visited, residuals, end = trajectory(model, batch, solver)
    with torch.no_grad():
        expected = model(*batch.clouds).equilibrium
    assert close(end, expected.particles, 1e-9) and len(visited) == int(expected.info.evaluations.max())
    assert not visited[0].any() and (residuals[0] == 1).all()
