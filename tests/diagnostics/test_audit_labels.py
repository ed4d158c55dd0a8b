"""The audit of particles with labels, which F has from its context and the problem as an attribute."""

import pytest
import torch
from torch import nn

from ddeq_fast import DDEQ, Pushforward
from ddeq_fast.diagnostics import auditing
from ddeq_fast.diagnostics.replay import Replay


class Labelled(nn.Module):
    """F(z, e) = tanh(z) / 2 + use e."""

    dim_z = 3

    def __init__(self, use):
        super().__init__()
        self.use = use

    def encode(self, x, weights=None):
        return (x.mean(1, keepdim=True).expand(-1, 5, -1),)

    def labelled(self, context, labels, weights=None):
        return (labels,)

    def forward(self, z, context, weights=None):
        return 0.5 * torch.tanh(z) + self.use * context[0][:, : z.shape[1]] + 1


@pytest.mark.parametrize("use", [0.0, 1.0])
def test_one_label_and_one_particle(use, x):
    transport = Labelled(use)
    layer = DDEQ(transport, 5).double()
    labels = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = Pushforward(transport, transport.labelled(None, labels))
    problem.labels, problem.batched = labels, (*Pushforward.batched, *{"labels"} - set(Pushforward.batched))
    start = x.new_zeros(6, 5, 3)
    own = layer.solver.solve(problem, start).particles
    replay = Replay(layer, x, None, {}, None, 0)
    with replay.evaluation():
        alike = auditing._one_label(replay, problem, start, own)
        one = auditing._one_particle(replay, problem, start, own)
    assert (alike, one) == pytest.approx((0, 0), abs=1e-6) if use == 0 else min(alike, one) > 0.3
