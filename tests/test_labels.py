"""Layers and models whose particles have labels: equilibria that are distributions, at any resolution."""

import pytest
import torch

from ddeq_fast import DDEQ, Classifier, Completer, squared_mmd
from ddeq_fast.clouds import PointClouds
from ddeq_fast.gradients import jacobian_norm
from ddeq_fast.solvers import Anderson, Auto, MMDFlow
from problems import close, fails, small_transport

TIGHT = Anderson(tol=1e-6, max_steps=200)


def layer(particles=4, dim_label=3, **options):
    return DDEQ(small_transport(dim_label=dim_label), particles, **{"solver": TIGHT, **options}).double()


@pytest.fixture
def x(cloud):
    return 2 * cloud(3, 7, 2)


def test_plain_particles_end_on_one_spot_and_labelled_ones_do_not(x):
    with torch.no_grad():
        plain, spread = (layer(6, dim)(x).particles.std(1).mean((1,)) for dim in (0, 3))
    assert (plain < 1e-9).all() and (spread > 1e-2).all()


@pytest.mark.filterwarnings("ignore::ddeq_fast.ConvergenceWarning")
@pytest.mark.parametrize(
    "solver", [TIGHT, MMDFlow(max_steps=6, tol=0.0), Auto(anderson={"max_steps": 4}, flow={"max_steps": 6})],
    ids=["anderson", "flow", "auto"],
)  # fmt: skip
def test_particles_permute_with_their_labels(x, cloud, solver):
    """Without a start to be permuted as well."""
    model, labels, order = layer(solver=solver), cloud(5, 3), [3, 1, 0, 4, 2]
    with torch.no_grad():
        expected = model(x, labels=labels)
        found = model(x[:, torch.arange(7).flip(0)], labels=labels[order])
    assert close(found.particles, expected.particles[:, order], 1e-7)
    assert torch.equal(expected.labels, labels.expand(3, -1, -1))
    assert not close(found.particles, expected.particles, 1e-3)


def test_more_labels_of_one_law_belong_to_the_same_equilibrium(x, cloud):
    """MMD^2 between n and 4 n of them falls about as 1 / n."""
    model, distances = layer(), []
    with torch.no_grad():
        for n in (8, 128):
            few, many = (model(x, labels=cloud(m, 3)).particles for m in (n, 4 * n))
            distances.append(squared_mmd(few, many).mean())
    assert distances[1] < 0.25 * distances[0]


def test_own_labels(x):
    learned, drawn, other = layer(seed=3), layer(seed=3, labels="drawn"), layer(seed=4)
    assert isinstance(learned.labels, torch.nn.Parameter) and not isinstance(drawn.labels, torch.nn.Parameter)
    assert learned.labels.shape == (4, 3) and torch.equal(learned.labels, drawn.labels)
    assert not close(other.labels, learned.labels, 0.1) and "labels" in drawn.state_dict()
    assert torch.equal(learned(x).particles, learned(x, labels=learned.labels).particles)
    assert "num_particles=4" in str(learned)
    learned(x).particles.square().sum().backward()
    assert learned.labels.grad.abs().max() > 0 and all(p.grad.any() for p in learned.parameters())


def test_a_layer_without_labels_has_nothing_new():
    names = layer(dim_label=0).state_dict()
    assert not [name for name in names if "label" in name] and "start" in names
    plain = small_transport()
    same = small_transport(dim_label=3).state_dict()
    assert all(torch.equal(same[name], value) for name, value in plain.state_dict().items())


def test_a_warm_start_keeps_its_labels(x, cloud):
    model, labels = layer(solver=Anderson(tol=1e-4)), cloud(3, 9, 3)
    with torch.no_grad():
        first = model(x, labels=labels)
        again = model(x, start=first, labels=first.labels)
        own = model(x, start=model(x))
    assert (again.info.evaluations == 1).all() and torch.equal(again.particles, first.particles)
    assert (own.info.evaluations == 1).all()
    with fails(ValueError, "labels must be of 9 particles, as start has, got 4"):
        model(x, start=first)


def test_the_marginal_residual_on_request(x):
    product, marginal = (
        layer(residual_space=space, solver=MMDFlow(max_steps=3, tol=0.0, relative=False))
        for space in ("product", "marginal")
    )
    with torch.no_grad():
        residuals = [model(x).info.residual for model in (product, marginal)]
    assert not torch.allclose(*residuals, rtol=1e-2)


def test_padding_of_labels(x, cloud):
    model, labels, weights = layer(), cloud(3, 6, 3), torch.ones(3, 6, dtype=torch.bool)
    weights[:, 4:] = False
    labels[:, 4:] = 1e200
    found = model(x, labels=labels, z_weights=weights).particles[:, :4]
    assert close(found, model(x, labels=labels[:, :4]).particles, 1e-9)
    assert jacobian_norm(model(x, labels=labels, z_weights=weights).problem, cloud(3, 6, 8)).isfinite().all()


def test_labelled_particles_beside_anchors_are_those_of_the_whole(x, cloud):
    """With one self-attention layer, F beside anchors is F of all particles together."""
    transport = small_transport(dim_label=3)
    z, anchors, labels, own = cloud(3, 4, 8), cloud(3, 2, 8), cloud(3, 4, 3), cloud(3, 2, 3)
    context = transport.encode(x)
    beside = transport.labelled(transport.anchored(context, anchors, None, own), labels)
    whole = transport.labelled(context, torch.cat((own, labels), 1))
    assert close(transport(z, beside), transport(torch.cat((anchors, z), 1), whole)[:, 2:], 1e-12)


def test_classifier_with_learned_labels_fits_a_batch(x):
    torch.manual_seed(1)
    model = Classifier(small_transport(dim_label=3), 5, num_particles=4, labels="learned", solver="auto").double()
    target, optimizer = torch.tensor([4, 0, 2]), torch.optim.Adam(model.parameters(), 1e-2)
    before = model.ddeq.labels.detach().clone()
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(x).logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model(x).logits.argmax(1).tolist() == target.tolist()
    assert not close(model.ddeq.labels.detach(), before, 1e-2)
    assert model(x, labels=torch.zeros(2, 3).double()).equilibrium.particles.shape == (3, 2, 8)


def completer(dim_label=2, **options):
    torch.manual_seed(1)
    return Completer(small_transport(dim_label=dim_label), **{"growth": 2.0, "solver": TIGHT, **options}).double()


def test_new_points_have_labels_where_they_start(x):
    model, plain = completer(), completer(0)
    with torch.no_grad():
        start = model.draw_start(x)
        out, collapsed = model(x, start=start), plain(x, start=start)
    assert torch.equal(out.equilibrium.labels, start.points) and out.equilibrium.info.converged.all()
    spread, none = (cloud.equilibrium.particles.std(1).mean(1) for cloud in (out, collapsed))
    assert (spread > 1e-2).all() and (none < 1e-6).all()
    order = torch.tensor([4, 2, 0, 1, 3, 6, 5])
    again = model(x, start=PointClouds(start.points[:, order], start.weights))
    assert close(again.points[:, 7:].detach(), out.points[:, 7:][:, order], 1e-7)


@pytest.mark.parametrize(
    ("options", "expected"), [({"growth": 4.0}, [18, 21]), ({"points": 30}, [24, 23]), ({"growth": 1.2}, [1, 1])]
)
def test_any_number_of_new_points_with_the_same_mass(x, options, expected):
    model, weights = completer(), torch.ones(2, 7).double()
    weights[0, 6] = 0
    with torch.no_grad():
        out, own = model(x[:2], weights, **options), model(x[:2], weights)
    new = (out.weights > 0) & ~out.observed
    assert new.sum(1).tolist() == expected and out.points.isfinite().all()
    assert torch.allclose((out.weights * new).sum(1), (own.weights * ~own.observed).sum(1))
    assert out.equilibrium.info.converged.all()


def test_completions_with_more_points_are_the_same_distribution(x):
    model, distances = completer(growth=3.0), []
    with torch.no_grad():
        for points in (11, 107):
            torch.manual_seed(0)
            few, many = (model(x, points=n).equilibrium.particles for n in (points, 4 * points - 21))
            distances.append(squared_mmd(few, many).mean())
    assert distances[1] < 0.5 * distances[0]


L = torch.zeros(3, 4, 3).double()


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (L[..., :2], ValueError, "labels must have shape (n, 3) or (3, n, 3), got (3, 4, 2)"),
        (L[:2], ValueError, "labels must have shape (n, 3) or (3, n, 3), got (2, 4, 3)"),
        (L.float(), TypeError, "labels has dtype torch.float32 but x has torch.float64"),
        (L.to("meta"), ValueError, "labels is on meta but x is on cpu"),
        (L.numpy(), TypeError, "labels must be a torch.Tensor, got ndarray"),
        (L / 0, ValueError, "labels must be finite, got 36 NaN or infinite values of 36"),
    ],
)
def test_bad_labels(x, labels, error, message):
    with fails(error, message):
        layer()(x, labels=labels)


def test_labels_where_there_are_none_and_none_where_there_are(x, cloud):
    anchors, labels = PointClouds(cloud(3, 2, 8), None), cloud(4, 3)
    with fails(ValueError, "labels must be None: the transport has dim_label = 0"):
        layer(dim_label=0)(x, labels=labels)
    with fails(ValueError, "labels must be given: this layer has none of its own"):
        layer(None)(x)
    with fails(ValueError, "labels must be None where num_particles is, or the transport has dim_label = 0"):
        layer(dim_label=0, labels="learned")
    with fails(ValueError, "labels must be one of drawn, learned; got 'random'"):
        layer(labels="random")
    with fails(TypeError, "anchor_labels must be a torch.Tensor, got NoneType"):
        layer()(x, anchors=anchors)
    with fails(ValueError, "anchor_labels must have shape (3, 2, 3), got (4, 3)"):
        layer()(x, anchors=anchors, anchor_labels=labels)
    with fails(ValueError, "anchor_labels must be None where anchors is"):
        layer()(x, anchor_labels=labels)
    with fails(ValueError, "anchor_labels must be None: the transport has dim_label = 0"):
        layer(dim_label=0)(x, anchors=anchors, anchor_labels=labels)
    with fails(ValueError, "transport must have a dim_label of 0 or dim_x = 2, got 3"):
        completer(3)
    with fails(ValueError, "points must be more than those of the partial clouds, 7, got 7"):
        completer()(x, points=7)
    with fails(ValueError, "points must be None where growth is given, got 9"):
        completer()(x, points=9, growth=2.0)
    with fails(ValueError, "growth must be None where start is given, which it is for"):
        completer()(x, start=completer().draw_start(x), growth=2.0)
