"""Masks beside weights, and boolean weights, in the layer, the classifier and the completer."""

import pytest
import torch

from ddeq_fast.clouds import PointClouds
from ddeq_fast.models import DDEQ, Classifier, Completer
from ddeq_fast.solvers import MMDFlow
from problems import close, fails, small_transport

BRIEF = MMDFlow(lr=0.3, max_steps=2, tol=0.0)
MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [False] + [True] * 5])
MODELS = {
    "layer": lambda: DDEQ(small_transport(), 4, solver=BRIEF),
    "classifier": lambda: Classifier(small_transport(), 3, num_particles=4, solver=BRIEF),
    "completer": lambda: Completer(small_transport(), growth=1.5, solver=BRIEF),
}


@pytest.fixture
def x(cloud):
    return cloud(3, 6, 2)


@pytest.fixture(params=MODELS)
def model(request):
    """Called as model(x, ...): numbers that depend on all that it is given."""
    model = MODELS[request.param]().double()

    def called(x, weights=None, **options):
        if isinstance(model, Completer):
            options["noise"] = torch.linspace(-1, 1, 18).view(3, 3, 2).double()
        return model(x, weights, **options)[0].detach()

    return called


def test_a_mask_stands_for_weights_of_one_and_zero(model, x):
    expected = model(x, MASK.double())
    assert torch.equal(model(x, MASK), expected) and torch.equal(model(x, mask=MASK), expected)
    assert not close(model(x), expected, 1e-3)


def test_a_mask_takes_weights_away(model, x):
    weights = torch.linspace(0.5, 2, 18).view(3, 6).double()
    assert torch.equal(model(x, weights, mask=MASK), model(x, weights * MASK))


def test_bad_masks_are_named(model, x):
    with fails(TypeError, "mask must have dtype torch.bool, got torch.float64"):
        model(x, mask=MASK.double())
    with fails(ValueError, "mask must have shape (3, 6), got (3, 5)"):
        model(x, mask=MASK[:, :5])
    with fails(ValueError, "mask leaves no point in cloud 0, 1, 2 of the batch"):
        model(x, mask=MASK & False)
    with fails(ValueError, "weights must be nonnegative, got a minimum of -1"):
        model(x, -MASK.double())
    with fails(TypeError, "x must be a torch.Tensor, got list"):
        model([1.0], mask=MASK)


def test_particles_and_anchors_may_be_masked(x, cloud):
    layer, start, anchors = MODELS["layer"]().double(), cloud(3, 6, 8), cloud(3, 6, 8)
    with torch.no_grad():
        expected = layer(x, start=start, z_weights=MASK.double(), anchors=PointClouds(anchors, MASK.double()))
        found = layer(x, start=start, z_weights=MASK, anchors=PointClouds(anchors, MASK))
    assert torch.equal(found.particles, expected.particles)
    assert torch.equal(found.info.residual, expected.info.residual)


def test_start_points_of_a_completion_may_be_masked(x):
    model = MODELS["completer"]().double()
    start = model.draw_start(x, mask=MASK)
    assert torch.equal(start.mask, model.draw_start(x, MASK.double()).mask)
    with torch.no_grad():
        expected = model(x, mask=MASK, start=start)
        assert torch.equal(model(x, mask=MASK, start=PointClouds(start.points, start.mask)).points, expected.points)
