"""Samples that are done leave a batch an eighth of it at a time."""

import torch

from ddeq_fast.solvers import Anderson, Pushforward
from problems import Recorder


def test_a_batch_is_left_by_several_samples_at_once():
    """One that is done waits where it is, evaluated but neither moved nor counted, until an eighth of them are."""
    rates = torch.tensor([0.1] * 2 + [0.8] * 18).double()[:, None, None]
    start = torch.arange(1.0, 161.0).double().view(20, 4, 2)
    func = Recorder(lambda z, context, weights: context * z)
    solver = Anderson(depth=2, ridge=1e30, max_steps=60, patience=None, tol=1e-2)  # the fixed-point iteration
    particles, info = solver.solve(Pushforward(func, rates), start)
    early = int(info.evaluations[0])
    assert info.evaluations.tolist() == [early] * 2 + [int(info.evaluations[-1])] * 18 and info.converged.all()
    assert set(func.batches) == {20} and len(func.batches) == info.evaluations[-1] > early
    assert torch.allclose(particles[:2], start[:2] * 0.1 ** (early - 1), rtol=1e-9)
    for batch in (8, 16):  # where these two are a quarter, an eighth
        func.batches.clear()
        solver.solve(Pushforward(func, rates[:batch]), start[:batch])
        assert func.batches == [batch] * early + [batch - 2] * int(info.evaluations[-1] - early)
