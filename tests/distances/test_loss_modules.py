"""The losses as modules: reductions, options, what they are called with, and that they travel."""

import copy
import io
import pickle

import pytest
import torch

from ddeq_fast import ChamferLoss, Gaussian, MMDLoss, chamfer, squared_mmd
from problems import fails

KERNEL = Gaussian(0.8)
# Each with the function that it is made of.
LOSSES = {
    "mmd": (MMDLoss, {"kernel": KERNEL}, lambda *args, **given: squared_mmd(*args, KERNEL, **given)),
    "chamfer": (ChamferLoss, {"convention": "l2"}, lambda *args, **given: chamfer(*args, convention="l2", **given)),
}


@pytest.fixture(params=LOSSES)
def kind(request):
    return LOSSES[request.param]


@pytest.fixture
def pair(cloud):
    """Clouds, and weights of their points."""
    x, y = cloud(3, 6, 2), cloud(3, 5, 2)
    return x, y, cloud(3, 6).abs() + 0.1, torch.tensor([[1, 1, 1, 0, 1]] * 3, dtype=torch.bool)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_batch_is_reduced(kind, pair, reduction):
    module, options, function = kind
    x, y, weights, mask = pair
    x.requires_grad_()
    loss = module(**options, reduction=reduction)
    for given in ({}, {"x_weights": weights, "y_mask": mask}, {"x_mask": torch.ones(3, 6) > 0, "y_weights": mask}):
        value, each = loss(x, y, **given), function(x, y, **given)
        expected = each if reduction == "none" else getattr(each, reduction)()
        assert torch.equal(value, expected) and each.min() > 0
        (found,), (wanted,) = (torch.autograd.grad(of.sum(), x) for of in (value, expected))
        assert torch.equal(found, wanted) and found.any()
    assert torch.equal(loss(x[0], y[0]), function(x[0], y[0]))


def test_backend_and_tolerance_are_passed_on(pair):
    x, y, *_ = pair
    assert torch.equal(MMDLoss(backend="dense")(x, y), squared_mmd(x, y, backend="dense").mean())
    assert torch.equal(ChamferLoss(backend="dense")(x, y), chamfer(x, y, backend="dense").mean())
    with fails(ValueError, "backend 'sliced' promises no tolerance, got 0.001"):
        MMDLoss(backend="sliced", tolerance=1e-3)
    assert torch.equal(MMDLoss(tolerance=1e-3)(x, y), squared_mmd(x, y, tolerance=1e-3).mean())


def test_modules_are_shown_and_travel(kind, pair):
    module, options, _ = kind
    loss = module(**options, reduction="sum")
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    others = copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.load(file, weights_only=False)
    for other in others:
        assert repr(other) == repr(loss) and torch.equal(other(*pair[:2]), loss(*pair[:2]))
    assert "reduction='sum', backend='auto'" in repr(loss) and not loss.state_dict()
    assert "tolerance=0.01" in repr(MMDLoss(tolerance=0.01))


def test_options_that_are_none(pair):
    with fails(ValueError, "reduction must be one of mean, none, sum; got 'max'"):
        MMDLoss(reduction="max")
    with fails(ValueError, "reduction must be one of mean, none, sum; got None"):
        ChamferLoss(reduction=None)
    with fails(TypeError, "kernel must be a RadialKernel such as Riesz(1.0), got str"):
        MMDLoss("gaussian")
    with fails(ValueError, "convention must be one of l1, l1-half, l2, l2-sum; got 'cd'"):
        ChamferLoss("cd")
    with fails(ValueError, "backend must be one of auto, dense, tree, triton; got 'keops'"):
        ChamferLoss(backend="keops")
    with pytest.raises(TypeError, match="positional"):
        ChamferLoss()(*pair)
