"""The study of solvers: residuals of plain and labelled layers, evaluation by evaluation."""

import pytest
import torch

from ddeq_fast import DDEQ, TransportMap
from ddeq_fast.solvers import Anderson

study = pytest.importorskip("bench.study", reason="no benchmarks beside the tests")


def layer(dim_label, **options):
    torch.manual_seed(0)
    sizes = {"dim_lift": (8, 8, 16), "dim_hidden": 16, "dim_final": 16, "num_heads": 2}
    return DDEQ(TransportMap(16, 2, dim_label=dim_label, **sizes).double(), **options)


@pytest.mark.parametrize("dim_label", [0, 3])
def test_residuals_fall(dim_label, cloud):
    subject = study.subject("small", layer(dim_label, num_particles=5), cloud(3, 7, 2))
    history, _ = study.follow(subject, Anderson(max_steps=12, tol=0.0, patience=None), torch.float64)
    assert history.shape == (13, 3) and (history[0] == 1).all()
    assert (history.diff(dim=0) <= 0).all() and (history[-1] < 0.2).all()


def test_a_layer_without_particles_is_refused(cloud):
    with pytest.raises(ValueError, match=r"^empty: a study needs a layer with particles of its own"):
        study.subject("empty", layer(0, num_particles=None), cloud(3, 7, 2))
