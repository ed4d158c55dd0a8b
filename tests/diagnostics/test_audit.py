"""The audit of models of which it is known what is wrong with them."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

import ddeq_fast
from ddeq_fast import Classifier, Completer, Phantom, PointClouds, audit
from ddeq_fast.diagnostics import pictures
from problems import fails, small_transport


@pytest.mark.parametrize(
    "name",
    ["collapsed", "ignores its particles", "ignores its input", "never converges", "not unique", "stops short"],
)
def test_what_is_wrong_is_said(planted, x, name):
    found = audit(planted(name), x)
    assert [finding.code for finding in found.findings] == [name]
    assert not found.healthy and found.verdict == found.findings[0].text and name.split()[0] in found.verdict


def test_a_healthy_one_is_healthy(planted, x):
    found = audit(planted("healthy"), x)
    assert found.findings == [] and found.healthy and found.headline == "healthy"
    assert found.verdict.startswith("healthy: a distribution within tolerance")
    assert min(found.spread) > 0.5 and found.one_particle > 0.1 and found.within == 1.0 and found.found == 1.0
    assert max(found.mmd) < 1e-6 and max(found.radius) < 0.5


def test_a_transport_map_without_labels_collapses(x):
    """Equivariant, and contractive once its last normalisation is small."""
    transport = small_transport()
    with torch.no_grad():
        for parameter in transport.final.parameters():
            parameter.mul_(0.3)
    found = audit(Classifier(transport, 3, num_particles=4).double(), x[..., :2], targets=torch.arange(6) % 3)
    assert "collapsed" in [finding.code for finding in found.findings]
    assert found.one_particle < 1e-3 and max(found.spread) < 1e-3 * min(found.start_spread)


def test_steps_come_to_the_equilibrium(planted, x):
    found = audit(planted("healthy"), x)
    for steps in (found.plain, found.own):
        assert steps[0].steps == 0 and [step.steps for step in steps] == sorted(step.steps for step in steps)
        assert steps[0].change > 0.3 and steps[-1].change < 1e-2
    moving = audit(planted("never converges"), x)
    assert moving.plain[-1].change > 0 and max(moving.radius) == pytest.approx(1)


def test_steps_that_leave_all_bounds_are_infinite(planted, x):
    model = planted("healthy")
    model.transport.gain.data.fill_(50.0)
    model.transport.shape = lambda z: z.sinh() if z.abs().max() < 300 else z * torch.inf
    found = audit(model, x)
    assert found.plain[-1].change == math.inf and found.plain[-1].scores == {}
    assert found.to_dict()["plain"][-1]["change"] is None


def test_gradients_are_compared_with_the_exact_one(planted, x):
    """Against differentiation of an unrolled solve."""
    labels = torch.arange(6) % 2
    torch.manual_seed(0)
    model = Classifier(planted("healthy").transport, 2, num_particles=5, backward=Phantom(steps=2), tol=1e-9).double()
    found = audit(model, x, targets=labels).gradients
    parameters = list(model.ddeq.parameters())

    def gradient(logits):
        parts = torch.autograd.grad(F.cross_entropy(logits, labels), parameters)
        return torch.cat([part.flatten() for part in parts])

    z, context = model.ddeq.start.expand(6, -1, -1), model.ddeq.transport.encode(x)
    for _ in range(100):
        z = model.ddeq.transport(z, context)
    exact, phantom = gradient(model.head(z.amax(1))), gradient(model(x).logits)
    error = float((phantom - exact).norm() / exact.norm())
    assert 1e-3 < error < 0.5
    assert found["own"].error == pytest.approx(error, rel=1e-4)
    assert found["own"].cosine == pytest.approx(float(F.cosine_similarity(phantom, exact, dim=0)), abs=1e-6)
    assert found["phantom 2"] == found["own"] and found["ift"].error < 1e-4
    assert found["phantom 1"].error > found["phantom 3"].error > found["phantom 10"].error


def test_scores_are_those_of_the_model(planted, x):
    labels = torch.arange(6) % 2
    model = Classifier(planted("healthy").transport, 2, num_particles=5).double()
    logits = model(x).logits
    found = audit(model, x, targets=labels)
    assert found.scores["accuracy"] == float((logits.argmax(1) == labels).double().mean())
    assert found.scores["loss"] == pytest.approx(float(F.cross_entropy(logits, labels).detach()), abs=1e-3)
    assert found.own[-1].scores["accuracy"] == found.scores["accuracy"]


def test_a_completer_with_padded_clouds(x):
    model = Completer(small_transport(), growth=2.0, widths=(4,), return_image=True).double()
    weights = torch.ones(6, 4, dtype=torch.float64)
    weights[0, 2:] = 0
    whole = PointClouds(torch.cat((x, -x), 1)[..., :2], torch.ones(6, 8, dtype=torch.float64))
    found = audit(model, x[..., :2], weights, targets=whole, starts=1)
    assert found.scores.keys() == {"mmd", "chamfer"} and found.particles == 4 and len(found.spread) == 6
    spoilt = torch.where(weights[..., None] > 0, x, 7.0)[..., :2]
    assert audit(model, spoilt, weights, targets=whole, starts=1).to_json() == found.to_json()


def test_nothing_of_the_model_is_changed(planted, x):
    model = planted("healthy").train()
    before, parts = {name: value.clone() for name, value in model.state_dict().items()}, (model.solver, model.backward)
    audit(model, x, starts=1)
    assert model.training and model.transport.training and (model.solver, model.backward) == parts
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_twice_and_in_json(planted, x):
    first, second = (audit(planted("healthy"), x, seed=3) for _ in range(2))
    assert first == second
    read = json.loads(first.to_json())
    assert read == first.to_dict() and read["verdict"] == first.verdict
    assert read["gradients"]["own"]["error"] == first.gradients["own"].error
    assert len(read["radius"]) == 6 and read["plain"][0]["steps"] == 0


def test_printed(planted, x):
    text = str(audit(planted("collapsed"), x))
    assert text.startswith("audit of 6 clouds: collapsed to one point")
    for part in ("spectral radius of J", "after steps of z <- F(z)", "3 other starts", "gradient, phantom 1"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 180


def test_drawn(planted, x, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    for name in ("healthy", "never converges"):
        pictures.draw(audit(planted(name), x), tmp_path / "audit.png")
        assert imread(tmp_path / "audit.png")[..., :3].std() > 0.05


def test_refusals(planted, x):
    model = planted("healthy")
    with fails(TypeError, "model must be a DDEQ, Classifier or Completer, got Handmade"):
        audit(model.transport, x)
    with fails(TypeError, "targets must be None for a DDEQ, which has neither labels nor whole clouds"):
        audit(model, x, targets=torch.zeros(6).long())
    assert ddeq_fast.audit is audit
