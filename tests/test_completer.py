"""Completion: start points, what stays, what moves, padding, invariances, training, bad input."""

import pytest
import torch

from ddeq_fast import squared_mmd
from ddeq_fast.clouds import PointClouds
from ddeq_fast.models import DDEQ, Completer, missing_points
from ddeq_fast.solvers import Anderson, MMDFlow, Pushforward
from problems import close, fails, small_transport
from references import golden

GOLDEN = golden("misc")
BRIEF = MMDFlow(max_steps=4, lr=0.5, tol=0.0)


def completer(dtype=torch.float64, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Completer(small_transport(), **{"solver": BRIEF, **options}).to(dtype)


@pytest.fixture
def x(cloud):
    """Clouds of 6, 9 and 8 points, padded to 9, and their weights."""
    weights = (torch.arange(9) < torch.tensor([6, 9, 8])[:, None]).double()
    return 2 * cloud(3, 9, 2) * weights[..., None] + 0.5, weights


def test_masks_grow_as_in_the_original_code():
    mask, grown = (torch.from_numpy(GOLDEN[f"scale_mask/{name}"]).squeeze(-1) for name in ("mask", "tau1.275"))
    assert torch.equal(missing_points(mask, 1.275), grown.sum(1) - mask.sum(1))


@pytest.mark.parametrize("growth, expected", [(1.275, [1, 2, 2]), (2.0, [6, 9, 8]), (1.01, [1, 1, 1])])
def test_start_points(x, growth, expected):
    """They are normal, with each cloud's own mean and deviation."""
    points, weights = x
    noise = torch.randn(3, 30, 2).double()
    start = completer(growth=growth).draw_start(points, 1.5 * weights, noise)
    assert start.weights.sum(1).tolist() == expected and start.points.shape[1] == 30
    for i, n in enumerate((6, 9, 8)):
        cloud, new = points[i, :n], expected[i]
        assert close(start.points[i, :new], cloud.mean(0) + cloud.std(0, correction=0) * noise[i, :new])
        assert not start.points[i, new:].any() and not start.weights[i, new:].any()


def test_observed_points_stay_and_others_move(x):
    model, (points, weights) = completer(), x
    start = model.draw_start(points, weights)
    out = model(points, 1.5 * weights, start=start)
    assert torch.equal(out.observed, torch.cat((weights > 0, torch.zeros(3, 2) > 0), 1))
    assert torch.equal(out.points[out.observed], points[weights > 0])
    assert (out.weights[out.observed] == 1.5).all() and (out.weights[:, 9:] == start.weights).all()
    assert (out.points[:, 9:] - start.points)[start.mask].detach().abs().amin() > 1e-4
    assert not out.points[out.weights == 0].any()


def test_the_layer_beside_held_particles_is_that_of_all_of_them(x, cloud):
    """Against the flow of the whole cloud with some of it frozen, under a map that returns these as they are."""
    model, z, anchors = completer(growth=2.0).ddeq, cloud(3, 5, 8), cloud(3, 4, 8)
    weights = torch.tensor([[1.0, 2, 1, 1, 0]] * 3).double()
    anchor_weights = torch.tensor([[1.0, 1, 1, 0], [0.5, 1, 2, 3], [1, 1, 1, 1]]).double()
    transport, context = model.transport, model.transport.encode(*x)

    def whole(z, context, weights):
        return torch.cat((anchors, transport(z, context, weights)[:, 4:]), 1)

    frozen = torch.cat((anchor_weights >= 0, weights < 0), 1)
    everything = Pushforward(
        lambda z, _, w: whole(z, context, w), None, torch.cat((anchor_weights, weights), 1), frozen
    )
    expected = BRIEF.solve(everything, torch.cat((anchors, z), 1))
    with torch.no_grad():
        out = model(*x, start=z, z_weights=weights, anchors=PointClouds(anchors, anchor_weights))
        tight = DDEQ(transport, None, solver=Anderson(tol=1e-6, max_steps=200))
        equilibrium = tight(*x, start=z, z_weights=weights, anchors=PointClouds(anchors, anchor_weights))
    assert close(out.particles[:, :4], expected.particles[:, 4:8], 1e-9)
    assert torch.allclose(out.info.residual, expected.info.residual, rtol=1e-9)
    assert equilibrium.info.converged.all()
    final = torch.cat((anchors, equilibrium.particles), 1)
    assert close(everything.image(final)[:, 4:8], final[:, 4:8], 1e-8)


def test_samples_are_independent_while_others_finish(x, cloud):
    solver = Anderson(tol=1e-4, max_steps=100)
    model, (points, weights) = completer(solver=solver), x
    # Starts of very different widths: samples do not finish together.
    torch.manual_seed(0)
    noise = torch.tensor([0.1, 1.0, 10.0]).double()[:, None, None] * torch.randn(3, 2, 2).double()
    start = model.draw_start(points, weights, noise)
    with torch.no_grad():
        together = model(points, weights, start=start)
        alone = model(points[1:2], weights[1:2], start=PointClouds(start.points[1:2], start.weights[1:2]))
    assert len(set(together.equilibrium.info.evaluations.tolist())) > 1
    assert close(alone.points, together.points[1:2], 1e-7)


def test_padding_has_no_influence(x):
    model, (points, weights) = completer(), x
    noise = torch.randn(3, 2, 2).double()
    out = model(points, weights, start=model.draw_start(points, weights, noise))
    far = torch.cat((torch.full((3, 2, 2), -1e5).double(), torch.where(weights[..., None] > 0, points, 1e5)), 1)
    wider = torch.cat((torch.zeros(3, 2).double(), weights), 1)
    again = model(far, wider, start=model.draw_start(far, wider, noise))
    assert close(again.points, out.points, 1e-9)
    alone = model(points[:1, :6], start=model.draw_start(points[:1, :6], None, noise[:1]))
    assert close(alone.points, torch.cat((out.points[:1, :6], out.points[:1, 9:]), 1), 1e-9)


def test_the_image_of_the_solution_without_gradients_too(x):
    model, (points, weights) = completer(return_image=True), x
    start = model.draw_start(points, weights)
    tracked = model(points, weights, start=start)
    with torch.no_grad():
        untracked = model(points, weights, start=start)
        itself = completer()(points, weights, start=start)
    assert close(tracked.points.detach(), untracked.points) and untracked.equilibrium.backward_info is None
    assert not close(itself.points, untracked.points, 1e-2)


def test_every_parameter_learns_but_those_that_scale_zeros(x):
    model = completer()
    out = model(*x)
    squared_mmd(out.points, 2 * x[0], x_weights=out.weights, y_weights=x[1]).sum().backward()
    idle = [name for name, p in model.named_parameters() if not (p.grad is not None and p.grad.any())]
    assert idle and all(name.startswith("lift.layers.0.scale.") for name in idle)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_training_completes_a_batch(x):
    """Shapes lose their right end; the loss finds it again."""
    t = torch.linspace(-1, 1, 12).double()
    full = torch.stack([torch.stack((t, c * t.square()), 1) for c in (-1.0, 0.0, 1.0)])
    partial = full[:, :8]
    model = completer(growth=1.5, solver=MMDFlow(max_steps=4, lr=4.0, tol=0.0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    torch.manual_seed(0)
    for _ in range(80):
        out = model(partial)
        loss = squared_mmd(out.points, full, x_weights=out.weights).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        out = model(partial)
    assert (squared_mmd(out.points, full) < 0.5 * squared_mmd(partial, full)).all()


def test_learned_mass_begins_as_equal_mass_and_is_learned(x):
    """Half of every cloud is missing, of which equal weights, a ninth or two, make too little: the mass finds it."""
    points, weights = x
    start = completer().draw_start(points, weights)
    model, equal = completer(mass="learned"), completer()
    equal.load_state_dict(model.state_dict(), strict=False)
    out, plain = model(points, weights, start=start), equal(points, weights, start=start)
    assert close(out.weights, plain.weights, 1e-7) and close(out.points, plain.points)
    assert not any(name.startswith("to_mass") for name in equal.state_dict())

    target = torch.cat((points, out.points[:, 9:].detach()), 1)
    charges = torch.cat((weights, start.weights * (weights.sum(1) / start.weights.sum(1))[:, None]), 1)
    optimizer = torch.optim.Adam(model.to_mass.parameters(), 0.1)
    losses = []
    for _ in range(100):
        out = model(points, weights, start=start)
        loss = squared_mmd(out.points, target, x_weights=out.weights, y_weights=charges).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]
    assert (out.weights[:, :9] == weights).all() and (out.weights[:, 9:][start.mask] > 1.5).all()
    assert not out.weights[:, 9:][~start.mask].any()


def test_learned_mass_is_shared_by_more_points(x):
    """As growth gives it: twice the points of the same mass at first."""
    model = completer(mass="learned", growth=2.0)
    out = model(*x, points=30)
    assert close(out.weights.sum(1), 2 * x[1].sum(1), 1e-7) and (out.weights > 0).sum(1).tolist() == [30] * 3


def test_float32(x):
    out = completer(torch.float32)(*(t.float() for t in x))
    assert out.points.dtype == torch.float32 and out.points.isfinite().all()


def test_bad_input(x):
    model, (points, weights) = completer(), x
    with fails(ValueError, "growth must lie in (1, 1e+06), got 1.0"):
        completer(growth=1.0)
    with fails(ValueError, "mass must be one of equal, learned; got 'free'"):
        completer(mass="free")
    with fails(ValueError, "weights leaves no point in cloud 1 of the batch"):
        model(points, weights * torch.tensor([1.0, 0, 1]).double()[:, None])
    with fails(ValueError, "noise must have shape (3, >= 2, 2), got (3, 1, 2)"):
        model.draw_start(points, weights, torch.randn(3, 1, 2))
    with fails(ValueError, "noise must have shape (3, >= 2, 2), got (3, 2)"):
        model.draw_start(points, weights, torch.randn(3, 2))
    with fails(TypeError, "noise must be a torch.Tensor, got list"):
        model.draw_start(points, weights, [1.0])
    with fails(ValueError, "noise must be finite, got 12 NaN or infinite values of 12"):
        model.draw_start(points, weights, torch.full((3, 2, 2), torch.nan).double())
    with fails(TypeError, "noise has dtype torch.float32 but x has torch.float64"):
        model.draw_start(points, weights, torch.zeros(3, 2, 2))
    with fails(ValueError, "x must have shape (B, m, 2), got (9, 2)"):
        model.draw_start(points[0], weights[0])
    with fails(ValueError, "noise must be None where start is given, which it is for"):
        model(points, weights, start=model.draw_start(points, weights), noise=torch.zeros(3, 2, 2).double())
    with fails(TypeError, "start must be PointClouds, points and weights, got Tensor"):
        model(points, weights, start=points)
    with fails(TypeError, "widths must be a tuple of widths, got 5"):
        completer(widths=5)
    with fails(TypeError, "start has dtype torch.float32 but x has torch.float64"):
        model(points, weights, start=model.draw_start(points.float(), weights.float()))
    with fails(ValueError, "start must be given: this layer has none of its own"):
        model.ddeq(points, weights)
