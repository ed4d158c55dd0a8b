"""The DDEQ layer and the classifier: fixed points, starts, seeds, modes, invariances, training, bad input."""

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Riesz
from ddeq_fast.gradients import ImplicitFunction, Phantom
from ddeq_fast.models import DDEQ, Classifier
from ddeq_fast.solvers import Anderson, ConvergenceWarning, MMDFlow
from problems import close, fails, small_transport

TIGHT = Anderson(tol=1e-6, max_steps=100)  # an MMD of 1e-6 under Riesz 1: positions to 1e-12

BRIEF = MMDFlow(max_steps=1, lr=0.1, tol=0.0)  # leaves the particles apart: equilibria here are single points


def layer(particles=4, dtype=torch.float64, dropout=0.0, **options):
    options = {"solver": TIGHT, **options}
    return DDEQ(small_transport(dtype=dtype, dropout=dropout), particles, **options).to(dtype)


def classifier(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Classifier(small_transport(), 5, **{"num_particles": 4, "solver": TIGHT, **options}).double()


@pytest.fixture
def x(cloud):
    return 2 * cloud(3, 7, 2)


def test_output_is_a_fixed_point_of_the_transport_map(x):
    model = layer().eval()
    with torch.no_grad():
        particles, info, backward, _ = model(x)
        image = model.transport(particles, model.transport.encode(x))
    assert particles.shape == (3, 4, 8) and close(image, particles, 1e-9)
    expected = np.sqrt(references.squared_mmd(particles, image, Riesz(1.0)))
    assert np.allclose(info.residual * info.scale, expected, atol=1e-7)
    assert backward is None


@pytest.mark.parametrize("solver", ["auto", "anderson", "flow"])
def test_solvers_by_name_report_their_residual(x, solver):
    model = DDEQ(small_transport(), 4, solver=solver).double()
    with torch.no_grad():
        if solver == "flow":
            with pytest.warns(ConvergenceWarning, match="MMDFlow"):
                particles, info = model(x)[:2]
        else:
            particles, info = model(x)[:2]
            assert info.converged.all() and (info.residual <= 1e-3).all()
        image = model.transport(particles, model.transport.encode(x))
    expected = np.sqrt(references.squared_mmd(particles, image, Riesz(1.0)))
    assert np.allclose(info.residual * info.scale, expected, rtol=1e-6)


def test_no_graph_where_gradients_are_disabled(x):
    model = layer()
    with torch.no_grad():
        particles, _, backward, _ = model(x)
    assert not particles.requires_grad and backward is None
    tracked, _, backward, _ = model(x)
    assert tracked.requires_grad and isinstance(backward.evaluations, int)
    assert close(tracked.detach(), particles, 1e-9)


def test_problem_evaluates_the_map_at_the_equilibrium(x, cloud):
    """With the context of this call: weights, frozen particles and dropout."""
    model, weights = layer(dropout=0.4), torch.tensor([1.0, 1.0, 2.0, 0.0]).double().expand(3, 4)
    particles, info, _, problem = model(x, z_weights=weights)
    assert info.converged.all() and torch.equal(problem.weights, weights)
    assert close(problem.image(particles)[:, :3], particles[:, :3], 1e-9)


@pytest.mark.parametrize("backward", [Phantom(steps=2), ImplicitFunction()], ids=["phantom", "ift"])
def test_every_parameter_and_the_input_get_gradients(x, backward):
    model = layer(backward=backward)
    x.requires_grad_()
    probe = torch.linspace(-1, 1, 32).double().view(4, 8)
    (model(x).particles * probe).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_samples_are_independent(x):
    model = layer().eval()
    together = model(x).particles
    assert close(model(x[1:2]).particles, together[1:2], 1e-9)


def test_particles_permute_with_their_start(x, cloud):
    model, start, order = layer(solver=BRIEF), cloud(3, 4, 8), torch.tensor([2, 0, 3, 1])
    particles = model(x, start=start).particles
    assert close(model(x, start=start[:, order]).particles, particles[:, order], 1e-9)
    assert not close(particles[:, order], particles, 1e-3)


def test_a_warm_start_saves_evaluations(x):
    model = layer(solver=Anderson(tol=1e-6, relative=False, max_steps=100))
    with torch.no_grad():
        cold = model(x)
        warm = model(x, start=cold.particles)
        nearby = model(x + 1e-3, start=cold.particles)
    assert (warm.info.evaluations == 1).all() and torch.equal(warm.particles, cold.particles)
    assert (nearby.info.evaluations < model(x + 1e-3).info.evaluations).all()


def test_a_start_may_have_another_number_of_particles(x, cloud):
    assert layer()(x, start=cloud(3, 9, 8)).particles.shape == (3, 9, 8)


def test_no_gradient_reaches_the_start(x, cloud):
    start = cloud(3, 4, 8, grad=True)
    layer()(x, start=start).particles.sum().backward()
    assert start.grad is None


def test_padding_and_weights_of_particles(x, cloud):
    model, start = layer(), cloud(3, 6, 8)
    weights = torch.ones(3, 6).double()
    weights[:, 4:] = 0
    particles = model(x, start=start, z_weights=weights).particles[:, :4]
    assert close(particles, model(x, start=start[:, :4]).particles, 1e-9)


@pytest.mark.parametrize("backward", [Phantom(steps=2), ImplicitFunction(tol=1e-8)], ids=["phantom", "ift"])
def test_frozen_particles_stay_with_and_without_gradients(x, cloud, backward):
    model, start = layer(solver=Anderson(tol=0.0, max_steps=60), backward=backward), cloud(3, 4, 8)
    frozen = torch.tensor([[True, False, False, False]] * 3)
    tracked = model(x, start=start, frozen=frozen).particles
    with torch.no_grad():
        particles = model(x, start=start, frozen=frozen).particles
    assert torch.equal(particles[:, 0], start[:, 0]) and torch.equal(tracked[:, 0], start[:, 0])
    assert close(tracked.detach(), particles, 1e-6)


def test_the_seed_sets_the_start(x):
    starts = [layer(seed=seed).start for seed in (3, 3, 4)]
    assert torch.equal(starts[0], starts[1]) and not torch.isclose(starts[0], starts[2]).any()
    assert torch.equal(layer(seed=3)(x).particles, layer(seed=3)(x).particles)


def test_drawing_the_start_leaves_the_global_generator_alone():
    transport = small_transport()
    torch.manual_seed(5)
    DDEQ(transport, 4)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_state_dict_round_trip(x, tmp_path):
    model = classifier(seed=7)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = Classifier(small_transport(seed=9), 5, num_particles=4, solver=TIGHT, seed=8).double()
    assert not close(other(x).logits, model(x).logits, 1e-3)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other.ddeq.start, model.ddeq.start)
    assert torch.equal(other(x).logits, model(x).logits)


def test_dropout_is_one_function_a_call(x):
    """The equilibrium of training mode is a fixed point too; the next call has another."""
    model = layer(dropout=0.4)
    torch.manual_seed(0)
    first = model(x)
    torch.manual_seed(0)
    again, other = model(x), model(x)
    assert first.info.converged.all() and torch.equal(first.particles, again.particles)
    assert not close(other.particles, first.particles, 1e-3)
    assert close(model.eval()(x).particles, layer()(x).particles)


def test_float32(x):
    model = layer(dtype=torch.float32, solver="auto")
    equilibrium = model(x.float())
    assert equilibrium.particles.dtype == torch.float32 and equilibrium.info.converged.all()


def test_classifier_is_the_head_of_the_largest_coordinates(x):
    model = classifier(solver=BRIEF)
    logits, equilibrium = model(x)
    assert equilibrium.particles.std(1).amin() > 1e-3
    expected = torch.stack([cloud.max(0).values for cloud in equilibrium.particles]) @ model.head.weight.T
    assert logits.shape == (3, 5) and close(logits, expected + model.head.bias)


def test_logits_do_not_depend_on_the_order_of_points(x):
    model = classifier()
    assert close(model(x[:, torch.randperm(7)]).logits, model(x).logits, 1e-9)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e6])
def test_logits_do_not_depend_on_padding(x, value):
    model, weights = classifier(), torch.ones(3, 9).double()
    weights[:, 7:] = 0
    padded = torch.cat((x, torch.full((3, 2, 2), value).double()), 1)
    assert close(model(padded, weights).logits, model(x).logits, 1e-9)


def test_a_point_of_weight_two_counts_twice(x):
    model, weights = classifier(), torch.ones(3, 7).double()
    weights[:, 0] = 2
    twice = torch.cat((x[:, :1], x), 1)
    assert close(model(x, weights).logits, model(twice).logits, 1e-9)


@pytest.mark.parametrize("backward", [Phantom(), ImplicitFunction(tol=1e-2)], ids=["phantom", "ift"])
def test_training_fits_a_batch(x, backward):
    model, labels = classifier(backward=backward, solver="auto"), torch.tensor([4, 0, 2])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(x).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model(x).logits.argmax(1).tolist() == labels.tolist()


def test_unconverged_solves_warn(x):
    model = layer(solver=MMDFlow(max_steps=1))
    with pytest.warns(ConvergenceWarning, match="MMDFlow: 3 of 3 samples ended above a residual of 0.001"):
        model(x)


@pytest.mark.parametrize("backward", [Phantom(steps=2), ImplicitFunction()], ids=["phantom", "ift"])
@pytest.mark.parametrize("solver", [Anderson(tol=1e-3), MMDFlow(max_steps=8, tol=0.0)], ids=["anderson", "flow"])
def test_padding_and_padded_particles_may_lie_anywhere(x, cloud, solver, backward):
    """In float32, where the square of their distance overflows."""
    model = layer(dtype=torch.float32, solver=solver, backward=backward)
    start, x = cloud(3, 6, 8, dtype=torch.float32), x.float()
    weights, z_weights = torch.ones(3, 7), torch.ones(3, 6)
    weights[:, 5:], z_weights[:, 4:] = 0, 0
    probe, found = cloud(3, 4, 8, dtype=torch.float32), []
    for far in (0.0, 1e30):
        x[:, 5:], start[:, 4:] = far, far
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        particles, info, *_ = model(leaf, weights, start=start, z_weights=z_weights)
        (particles[:, :4] * probe).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append((particles[:, :4].detach(), info.residual, leaf.grad, grads))
    assert all(torch.equal(near, away) and near.isfinite().all() for near, away in zip(*found, strict=True))


def test_a_warm_start_at_what_was_a_fixed_point_already(x):
    """Its residual is relative to nothing, and counts as absolute."""
    model = layer(solver=Anderson())
    with torch.no_grad():
        for parameter in model.transport.final.norm.parameters():
            parameter.zero_()
        model.start.zero_()
        first = model(x)
        again = model(x, start=first)
    assert first.info.scale.tolist() == again.info.scale.tolist() == [1.0] * 3
    assert again.info.converged.all() and again.info.evaluations.tolist() == [1] * 3


X, Z = torch.zeros(2, 4, 2).double(), torch.zeros(2, 3, 8).double()


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X[0], {}, ValueError, "x must have shape (B, m, 2), got (4, 2)"),
        (
            X,
            {"weights": torch.zeros(2, 4).double()},
            ValueError,
            "weights leaves no point in cloud 0, 1 of the batch",
        ),
        (X, {"start": Z[:1]}, ValueError, "start must have shape (2, n, 8), got (1, 3, 8)"),
        (X, {"start": Z[0]}, ValueError, "start must have shape (2, n, 8), got (3, 8)"),
        (X, {"start": Z[..., :7]}, ValueError, "start must have shape (2, n, 8), got (2, 3, 7)"),
        (X, {"start": Z.float()}, TypeError, "start has dtype torch.float32 but x has torch.float64"),
        (X, {"start": Z / 0}, ValueError, "start must be finite, got 48 NaN or infinite values of 48"),
        (X, {"start": Z.numpy()}, TypeError, "start must be a torch.Tensor, got ndarray"),
        (
            X,
            {"z_weights": torch.ones(2, 3).double()},
            ValueError,
            "z_weights must have shape (2, 4), got (2, 3)",
        ),
        (X, {"frozen": torch.ones(2, 4)}, TypeError, "frozen must have dtype torch.bool, got torch.float32"),
        (X, {"start": Z.to("meta")}, ValueError, "start is on meta but x is on cpu"),
        (X, {"anchors": Z}, TypeError, "anchors must be PointClouds, points and weights, got Tensor"),
        (X, {"anchors": (Z[:1], None)}, ValueError, "anchors.points must have shape (2, m, 8), got (1, 3, 8)"),
        (X, {"anchors": (Z, -Z[..., 0] - 1)}, ValueError, "anchors.weights must be nonnegative, got a minimum of -1"),
    ],
)
def test_bad_input(x, options, error, message):
    with fails(error, message):
        layer()(x, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_particles": 0}, ValueError, "num_particles must be at least 1, got 0"),
        ({"solver": "newton"}, ValueError, "solver must be one of anderson, auto, flow; got 'newton'"),
        ({"backward": "exact"}, ValueError, "backward must be one of bilevel, ift, phantom; got 'exact'"),
        ({"solver": Anderson}, TypeError, "solver must be a name or a Solver, got the class Anderson"),
        ({"backward": Phantom}, TypeError, "backward must be a name or a Backward, got the class Phantom"),
        ({"seed": "1"}, TypeError, "seed must be an integer, got str"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 2**63}, ValueError, f"seed must be at most {2**63 - 1}, got {2**63}"),
        ({"return_image": "no"}, TypeError, "return_image must be True or False, got 'no'"),
        ({"transport": None}, TypeError, "transport must be a TransportMap, or have what one has, got NoneType"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        ({"num_classes": 2.0}, TypeError, "num_classes must be an integer, got float"),
    ],
)
def test_bad_options(options, error, message):
    with fails(error, message):
        Classifier(**{"num_classes": 3, "transport": small_transport(), **options})
