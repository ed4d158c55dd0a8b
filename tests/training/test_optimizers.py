"""Optimizers of training: what Muon steps, what is saved of it, and runs with it."""

import pytest
import torch
from torch import nn

from ddeq_fast.training import Trainer
from ddeq_fast.training.optimizers import Muon, make_optimizer, orthogonal
from problems import fails


def stepped(name, weight_decay=0.0):
    """A matrix, a bias and a narrow matrix before and after one step, whose gradients are random."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((32, 24), (24,), (32, 2))]
    before = [p.detach().clone() for p in parameters]
    optimizer = make_optimizer(name, parameters, 0.01, weight_decay)
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer.step()
    return [p.detach() - b for p, b in zip(parameters, before, strict=True)], optimizer


def test_muon_steps_matrices_and_adamw_the_rest():
    (matrix, bias, narrow), _ = stepped("muon")
    adamw = stepped("adamw")[0]
    assert torch.equal(bias, adamw[1]) and torch.equal(narrow, adamw[2])
    assert not torch.allclose(matrix, adamw[0], rtol=0.5)
    # An orthogonal step: its singular values are alike, where those of a random matrix spread over a factor of 14.
    values = torch.linalg.svdvals(matrix)
    assert values[0] < 2 * values[-1]
    # It has the size that AdamW's steps have in training, a fifth of its first one.
    assert float(matrix.square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.3)


def test_learning_rates_of_groups_are_obeyed():
    _, optimizer = stepped("muon")
    before = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    assert len(before) == 3
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    after = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(map(torch.equal, before, after))


def test_a_model_without_matrices_has_none_for_muon():
    bias = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer("muon", [bias], 0.1, 0.0)
    bias.grad = torch.ones(3)
    optimizer.step()
    assert torch.allclose(bias, torch.full((3,), 0.9))


def test_runs_with_muon_are_resumed_exactly(tmp_path, rings, small):
    config = small(optimizer="muon", dim_z=16, dim_hidden=16, epochs=2)
    whole = Trainer(config, tmp_path / "whole", rings)
    expected = whole.fit(progress=False)
    matrices = [p for p in whole.model.parameters() if "momentum_buffer" in whole.optimizer.state[p]]
    assert 0 < len(matrices) < len(list(whole.model.parameters()))

    broken = Trainer(config, tmp_path / "broken", rings)
    for batch in broken.batches():
        broken.train_step(batch)
    broken.save("last.safetensors")
    with pytest.warns(UserWarning, match="lacks steps before 6, the last checkpoint's"):
        resumed = Trainer.resume(tmp_path / "broken", rings)
    assert resumed.fit(progress=False) == expected
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


def test_unknown_optimizers_are_refused(small):
    with fails(ValueError, "optimizer must be one of adamw, muon; got 'sgd'"):
        make_optimizer("sgd", [nn.Parameter(torch.ones(2))], 0.1, 0.0)
    with fails(ValueError, "optimizer must be one of adamw, muon; got 'sgd'"):
        small(optimizer="sgd")


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_takes_the_steps_of_torch():
    """Up to the rounding of bfloat16, in which torch orthogonalises: several matrices of one shape, wide and tall."""
    shapes = [(32, 24), (32, 24), (16, 40), (24, 32)]
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in shapes]
    mine, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimizers = (
        Muon(mine, 0.1, 0.05),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        for one, other in zip(mine, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, before in zip(mine, theirs, start, strict=True):
        assert (one - other).norm() < 0.02 * (other - before).norm()


def test_muon_leaves_matrices_without_a_gradient():
    matrices = [nn.Parameter(torch.randn(16, 16)) for _ in range(2)]
    before = [matrix.detach().clone() for matrix in matrices]
    optimizer = Muon(matrices, 0.1, 0.1)
    matrices[1].grad = torch.randn(16, 16)
    optimizer.step()
    assert torch.equal(matrices[0], before[0]) and not torch.equal(matrices[1], before[1])
    assert list(optimizer.state) == [matrices[1]]


def test_orthogonal_keeps_singular_vectors(cloud):
    x = cloud(3, 20, 6)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    values = (u.mT @ orthogonal(x) @ vh.mT).diagonal(dim1=1, dim2=2)
    rest = u @ torch.diag_embed(values) @ vh - orthogonal(x)
    assert rest.abs().max() < 1e-12 and values.min() > 0.6 and values.max() < 1.3
