"""The study of solvers: residuals of plain and labelled layers, evaluation by evaluation."""

import pytest
import torch

from ddeq_fast import DDEQ, TransportMap, training
from ddeq_fast.solvers import Anderson
from ddeq_fast.training.config import Config

study = pytest.importorskip("bench.study", reason="no benchmarks beside the tests")


def layer(dim_label, **options):
    torch.manual_seed(0)
    sizes = {"dim_lift": (8, 8, 16), "dim_hidden": 16, "dim_final": 16, "num_heads": 2}
    return DDEQ(TransportMap(16, 2, dim_label=dim_label, **sizes).double(), **options)


@pytest.mark.parametrize("dim_label", [0, 3])
def test_residuals_fall(dim_label, cloud):
    small, x = layer(dim_label, num_particles=5), cloud(3, 7, 2)
    own = small.solver
    subject = study.captured("small", small, lambda: small(x))
    history, _ = study.follow(subject, Anderson(max_steps=12, tol=0.0, patience=None))
    assert history.shape == (13, 3) and (history[0] == 1).all()
    assert (history.diff(dim=0) <= 0).all() and (history[-1] < 0.2).all()
    assert small.solver is own


@pytest.mark.parametrize("task", ["classify", "complete"])
def test_runs_of_both_tasks(task, tmp_path):
    """A run just begun: its solves are those of the model on the first test clouds, in float64."""
    sizes = {"dim_z": 8, "num_heads": 2, "dim_lift": 4, "dim_hidden": 8, "dim_label": 3, "particles": 3}
    trainer = training.Trainer(Config(task=task, epochs=1, **sizes), tmp_path / "run")
    trainer.save("last.safetensors")
    subject = study.trained(tmp_path / "run", 4, torch.float64)
    assert len(subject.start) == 4 and subject.start.dtype == torch.float64
    history, _ = study.follow(subject, Anderson(max_steps=6, tol=0.0, patience=None))
    assert history.shape == (7, 4) and (history[-1] < history[0]).all()
