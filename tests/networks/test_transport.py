"""The transport map: equivariance, invariance, padding, weights, dropout, gradients and bad input."""

import pytest
import torch
from torch import nn

from ddeq_fast import solvers
from ddeq_fast.networks import TransportMap
from ddeq_fast.networks import transport as transport_module
from ddeq_fast.solvers import MMDFlow, Pushforward
from ddeq_fast.utils import tree
from problems import close, small_transport


@pytest.fixture
def transport():
    return small_transport()


@pytest.fixture
def clouds(cloud):
    """(z, x): three clouds each."""
    return cloud(3, 5, 8), cloud(3, 7, 2)


def gradients(transport, z, x, weights=None, z_weights=None):
    """F(z, x), and derivatives of a sum over its real particles: with respect to z, x and the parameters."""
    z, x = z.detach().requires_grad_(), x.detach().requires_grad_()
    y = transport(z, transport.encode(x, weights), z_weights)
    y_real = y if z_weights is None else y[z_weights > 0]
    probe = torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)
    grads = torch.autograd.grad((y_real * probe).sum(), (z, x, *transport.parameters()))
    return y.detach(), grads[0], grads[1], grads[2:]


def appended(cloud, value, rows=2):
    """The clouds with `rows` more points of that value, and weights that mark them as padding."""
    more = cloud.new_full((cloud.shape[0], rows, cloud.shape[2]), value)
    weights = cloud.new_ones(cloud.shape[0], cloud.shape[1] + rows)
    weights[:, cloud.shape[1] :] = 0
    return torch.cat((cloud, more), 1), weights


def test_permuting_z_permutes_the_image(transport, clouds):
    z, x = clouds
    order = torch.tensor([3, 1, 4, 0, 2])
    context = transport.encode(x)
    image = transport(z, context)
    assert close(transport(z[:, order], context), image[:, order])
    assert not close(image[:, order], image, 1e-2)


def test_permuting_x_changes_nothing(transport, clouds):
    z, x = clouds
    order = torch.tensor([6, 2, 4, 0, 5, 1, 3])
    assert close(transport(z, transport.encode(x[:, order])), transport(z, transport.encode(x)))


def test_samples_do_not_see_each_other(transport, clouds):
    z, x = clouds
    image = transport(z, transport.encode(x))
    for i in range(3):
        one = slice(i, i + 1)
        assert close(transport(z[one], transport.encode(x[one])), image[one])


def test_particles_and_points_see_each_other(transport, clouds):
    """Neither a constant map nor one that treats every particle alone."""
    z, x = clouds
    image = transport(z, transport.encode(x))
    moved_x, moved_z = x.clone(), z.clone()
    moved_x[:, 0] += 1
    moved_z[:, 0] += 1
    assert not close(transport(z, transport.encode(moved_x)), image, 1e-3)
    assert not close(transport(moved_z, transport.encode(x))[:, 1:], image[:, 1:], 1e-3)


@pytest.mark.parametrize("value", [0.0, 0.7, -1e6, 1e30])
def test_padding_of_x_has_no_influence(transport, clouds, value):
    z, x = clouds
    y, dz, dx, dp = gradients(transport, z, x)
    padded, weights = appended(x, value)
    y_padded, dz_padded, dx_padded, dp_padded = gradients(transport, z, padded, weights)
    assert close(y_padded, y) and close(dz_padded, dz) and close(dx_padded[:, :7], dx)
    assert (dx_padded[:, 7:] == 0).all()
    assert all(close(ours, plain, 1e-10) for ours, plain in zip(dp_padded, dp, strict=True))


@pytest.mark.parametrize("value", [0.0, 0.7, -1e6, 1e30])
def test_padding_of_z_has_no_influence(transport, clouds, value):
    z, x = clouds
    y, dz, dx, dp = gradients(transport, z, x)
    padded, weights = appended(z, value)
    y_padded, dz_padded, dx_padded, dp_padded = gradients(transport, padded, x, z_weights=weights)
    assert close(y_padded[:, :5], y) and close(dz_padded[:, :5], dz) and close(dx_padded, dx)
    assert (dz_padded[:, 5:] == 0).all()
    assert all(close(ours, plain, 1e-10) for ours, plain in zip(dp_padded, dp, strict=True))


def test_ragged_batches_equal_each_cloud_alone(transport, clouds):
    z, x = clouds
    weights = torch.ones(3, 7, dtype=x.dtype)
    weights[0, 4:] = 0
    weights[2, :3] = 0
    image = transport(z, transport.encode(x, weights))
    for i in range(3):
        alone = transport.encode(x[i : i + 1, weights[i] > 0])
        assert close(transport(z[i : i + 1], alone), image[i : i + 1])


def test_a_point_of_weight_two_counts_as_two_points(transport, clouds):
    z, x = clouds
    weights = torch.ones(3, 7, dtype=x.dtype)
    weights[:, 0] = 2
    twice = torch.cat((x[:, :1], x), 1)
    assert close(transport(z, transport.encode(x, weights)), transport(z, transport.encode(twice)))
    assert not close(transport(z, transport.encode(x)), transport(z, transport.encode(twice)), 1e-3)


def test_a_particle_of_weight_two_counts_as_two_particles(transport, clouds):
    z, x = clouds
    weights = torch.ones(3, 5, dtype=z.dtype)
    weights[:, 0] = 2
    context = transport.encode(x)
    twice = transport(torch.cat((z[:, :1], z), 1), context)
    assert close(transport(z, context, weights), twice[:, 1:])


def test_unit_weights_equal_none(transport, clouds):
    z, x = clouds
    ones_z, ones_x = torch.ones(3, 5, dtype=z.dtype), torch.ones(3, 7, dtype=x.dtype)
    assert close(transport(z, transport.encode(x, ones_x), ones_z), transport(z, transport.encode(x)))


def test_weights_receive_gradients(transport, clouds):
    """As finite differences have them, and none that is not finite at padding."""
    z, x = clouds
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0, 1.5, 1.0, 0.0], dtype=x.dtype).expand(3, 7).clone()
    probe = torch.linspace(-1, 1, 8, dtype=x.dtype)

    def value(weights):
        return (transport(z, transport.encode(x, weights)) * probe).sum()

    (grad,) = torch.autograd.grad(value(weights.requires_grad_()), weights)
    assert grad.isfinite().all()
    step = torch.zeros_like(weights)
    step[1, 2] = 1e-5
    with torch.no_grad():
        difference = (value(weights + step) - value(weights - step)) / 2e-5
    assert abs(difference) > 1e-3
    assert abs(grad[1, 2] - difference) <= 1e-7 * abs(difference)


def test_dropout_is_drawn_once_an_encoding(clouds):
    transport = small_transport(dropout=0.5)
    z, x = clouds
    context = transport.encode(x)
    image = transport(z, context)
    assert torch.equal(transport(z, context), image)
    assert not close(transport(z, transport.encode(x)), image, 1e-3)


def test_dropout_keeps_equivariance_and_invariance(clouds):
    """All points of a cloud lose the same units."""
    transport = small_transport(dropout=0.5)
    z, x = clouds
    torch.manual_seed(1)
    context = transport.encode(x)
    torch.manual_seed(1)
    permuted = transport.encode(x.flip(1))
    image = transport(z, context)
    assert close(transport(z.flip(1), permuted), image.flip(1))
    assert not close(image, transport.eval()(z, transport.encode(x)), 1e-3)


def test_samples_lose_different_units():
    transport = small_transport(dropout=0.5, dim_hidden=64)
    drop = transport.encode(torch.zeros(4, 3, 2).double()).drops["self"][0]
    assert drop.shape == (4, 1, 64) and set(drop.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(drop[0], drop[1])


def test_no_dropout_in_evaluation_mode(clouds):
    z, x = clouds
    dropping, plain = small_transport(dropout=0.5).eval(), small_transport()
    assert torch.equal(dropping(z, dropping.encode(x)), plain(z, plain.encode(x)))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_selecting_from_a_context_equals_encoding_the_selection(clouds, weighted, dropout):
    transport = small_transport(dropout=dropout)
    z, x = clouds
    weights = torch.ones(3, 7, dtype=x.dtype)
    weights[0, 2:] = 0 if weighted else 1
    index = torch.tensor([2, 0])
    context = transport.encode(x, weights)
    image = transport(z, context)
    assert close(transport(z[index], tree.select(context, index)), image[index])
    if not dropout:
        assert close(transport(z[index], transport.encode(x[index], weights[index])), image[index])


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"attend_to_padding": True}, {"x_layers": 0}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("points", [5, 14])
def test_a_batch_encoded_in_parts(points, weighted, options, clouds, monkeypatch):
    """Without a graph, where no tensor is kept: the context is that of the whole batch."""
    transport, (_, x) = small_transport(**options), clouds
    weights = torch.ones(3, 7, dtype=x.dtype)
    weights[0, 2:] = 0 if weighted else 1
    torch.manual_seed(3)
    whole = transport.encode(x, weights)
    monkeypatch.setattr(transport_module, "POINTS_AT_ONCE", points)
    torch.manual_seed(3)
    with torch.no_grad():
        parts = transport.encode(x, weights)
    torch.testing.assert_close(tree.leaves(parts), [tensor.detach() for tensor in tree.leaves(whole)])
    assert type(parts) is type(whole) and parts.drops.keys() == whole.drops.keys()


def test_parameter_counts():
    transport = TransportMap()
    assert sum(p.numel() for p in transport.parameters()) == 771_824
    classifier = nn.ModuleList((transport, nn.Linear(transport.dim_z, 10)))
    assert sum(p.numel() for p in classifier.parameters()) == 773_114


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_parameter_gets_a_finite_gradient(cloud, dtype):
    transport = small_transport(dtype=dtype)
    _, dz, dx, dp = gradients(transport, cloud(3, 5, 8, dtype=dtype), cloud(3, 7, 2, dtype=dtype))
    assert all(grad.isfinite().all() and grad.any() and grad.dtype == dtype for grad in (dz, dx, *dp))


def test_layer_counts(cloud):
    transport = small_transport(self_layers=2, cross_layers=3, x_layers=0)
    counts = [len(part) for part in (transport.self_encoder, transport.cross_encoder, transport.x_encoder)]
    assert counts == [2, 3, 0]
    assert transport(cloud(1, 4, 8), transport.encode(cloud(1, 6, 2))).shape == (1, 4, 8)


@pytest.mark.parametrize("solver", ["anderson", "flow"])
@pytest.mark.parametrize("weighted", [False, True])
def test_bfloat16_in_the_network_and_nowhere_else(clouds, solver, weighted):
    z, x = (cloud.float() for cloud in clouds)
    weights = torch.tensor([[1, 1, 0.5, 1, 1, 0, 0]] * 3) if weighted else None
    options = {"max_steps": 12, "tol": 0.0}
    solutions, inside = [], []
    for network_dtype in (None, torch.bfloat16):
        transport = small_transport(dtype=torch.float32, network_dtype=network_dtype)
        transport.final.linear1.register_forward_hook(lambda module, args, y: inside.append(y.dtype))
        problem = Pushforward(transport, transport.encode(x, weights))
        solutions.append(solvers.solve(problem, z, solver, **options))
        assert set(inside) == {network_dtype or torch.float32}
        inside.clear()
    (expected, _), (found, info) = solutions
    assert found.dtype == torch.float32 and info.residual.dtype == torch.float64
    assert 1e-5 < (found - expected).abs().mean() < 0.02 and not info.residual.isnan().any()


def test_compiled_whole_for_batches_of_any_size(clouds):
    """Few graphs, though samples leave the batch: without derivatives, with them, and for a batch of one."""
    plain, compiled = (small_transport(cross_layers=1) for _ in range(2))
    compiled.compile(fullgraph=True, dynamic=True, backend="eager")
    z, x = (torch.cat((cloud, 2 * cloud)) for cloud in clouds)
    counters = torch._dynamo.utils.counters
    counters.clear()
    found = []
    for transport in (plain, compiled):
        with torch.no_grad():
            problem = Pushforward(transport, transport.encode(x))
        found.append(MMDFlow(max_steps=12, tol=0.45, check_every=1).solve(problem, z))
    assert close(found[1].particles, found[0].particles)
    evaluations = found[0].info.evaluations
    assert len(evaluations.unique()) > 2 and torch.equal(found[1].info.evaluations, evaluations)
    assert counters["stats"]["unique_graphs"] <= 3


@pytest.mark.parametrize("far", [1e30, -3e38])
@pytest.mark.parametrize("attends", [False, True])
def test_padding_as_far_as_numbers_go(cloud, attends, far):
    """In float32, where its square overflows; padded particles too, other than in the original's mode."""
    transport = small_transport(dtype=torch.float32, attend_to_padding=attends)
    (z, z_weights), (x, weights) = (appended(cloud(2, 3, d, dtype=torch.float32), 0.0) for d in (8, 2))
    expected, *near = gradients(transport, z, x, weights, z_weights)
    x[:, -2:] = far
    if not attends:
        z[:, -2:] = far
    found, *grads = gradients(transport, z, x, weights, z_weights)
    assert torch.equal(found[:, :3], expected[:, :3])
    for ours, theirs in ((grads[0], near[0]), (grads[1], near[1]), *zip(grads[2], near[2], strict=True)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("far", [1e30, -3e38])
def test_padding_of_anchors_as_far_as_numbers_go(cloud, far):
    transport = small_transport(dtype=torch.float32)
    z, context = cloud(2, 4, 8, dtype=torch.float32), transport.encode(cloud(2, 5, 2, dtype=torch.float32))
    points, weights = appended(cloud(2, 3, 8, dtype=torch.float32), far)
    found = transport(z, transport.anchored(context, points, weights))
    assert torch.allclose(found, transport(z, transport.anchored(context, points[:, :3])), atol=1e-6)
