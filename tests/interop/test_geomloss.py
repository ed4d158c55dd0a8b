"""geomloss's kernel losses: its formula in plain float64, its shapes, what it takes, and itself where installed."""

import copy
import pickle
import re

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ddeq_fast import Gaussian, Laplacian, Riesz, squared_mmd
from ddeq_fast.interop.geomloss import SamplesLoss
from problems import close

LOSSES = ["energy", "gaussian", "laplacian"]
BLUR = 0.7
KERNELS = {"energy": Riesz(1.0), "gaussian": Gaussian(BLUR), "laplacian": Laplacian(BLUR)}
BACKENDS = ["auto", "tensorized", "online", "multiscale"]


def fails(error, message):
    """The beginning of the message, taken literally."""
    return pytest.raises(error, match=f"^{re.escape(message)}")


def kernel_matrix(loss, x, y):
    """k of all pairs; the zero distances of a cloud to itself have the gradient zero."""
    q = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    r = torch.where(q > 0, torch.where(q > 0, q, 1).sqrt(), 0)
    return {"energy": -r, "gaussian": (-q / (2 * BLUR**2)).exp(), "laplacian": (-r / BLUR).exp()}[loss]


def reference(loss, a, x, b, y):
    """1/2 <a - b, k * (a - b)>, and its two potentials."""

    def smoothed(targets, sources, weights):
        return (kernel_matrix(loss, targets, sources) @ weights[..., None])[..., 0]

    f = smoothed(x, x, a) - smoothed(x, y, b)
    g = smoothed(y, y, b) - smoothed(y, x, a)
    return 0.5 * ((a * f).sum(-1) + (b * g).sum(-1)), f, g


@pytest.fixture
def clouds(cloud):
    """Weights and points (2, 6, 3) and (2, 5, 3); masses are not one."""
    a, b = cloud(2, 6).abs(), cloud(2, 5).abs()
    return tuple(t.requires_grad_() for t in (a, cloud(2, 6, 3), b, cloud(2, 5, 3) + 0.3))


@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_of_weighted_clouds(loss, clouds):
    value, expected = SamplesLoss(loss, blur=BLUR)(*clouds), reference(loss, *clouds)[0]
    assert value.shape == (2,) and close(value, expected, 1e-12)
    for found, wanted in zip(
        torch.autograd.grad(value.sum(), clouds), torch.autograd.grad(expected.sum(), clouds), strict=True
    ):
        assert wanted.abs().max() > 1e-3 and close(found, wanted, 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_weights_are_half_of_the_squared_mmd(loss, clouds):
    _, x, _, y = clouds
    value = SamplesLoss(loss, blur=BLUR)(x, y)
    assert close(value, squared_mmd(x, y, KERNELS[loss]) / 2, 1e-12)
    assert close(value, reference(loss, x.new_full((2, 6), 1 / 6), x, y.new_full((2, 5), 1 / 5), y)[0], 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_potentials(loss, clouds):
    f, g = SamplesLoss(loss, blur=BLUR, potentials=True)(*clouds)
    _, *expected = reference(loss, *clouds)
    assert f.shape == (2, 6) and close(f, expected[0], 1e-12)
    assert g.shape == (2, 5) and close(g, expected[1], 1e-12)
    a, *_ = clouds
    (slope,) = torch.autograd.grad(SamplesLoss(loss, blur=BLUR)(*clouds).sum(), a)
    assert close(slope, f, 1e-12)


@pytest.mark.parametrize("distance", [0.0, 0.3, 2.0])
def test_one_point_on_each_side(distance):
    """Closed forms."""
    x, y = torch.zeros(1, 2).double(), distance * torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    r = torch.tensor(distance, dtype=torch.float64)
    for loss, expected in (
        ("energy", r),
        ("gaussian", 1 - (-(r**2) / (2 * BLUR**2)).exp()),
        ("laplacian", 1 - (-r / BLUR).exp()),
    ):
        assert close(SamplesLoss(loss, blur=BLUR)(x, y), expected, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_of_single_clouds(backend, clouds):
    """Without a batch axis, weights with an axis of one behind, labels that are not given."""
    a, x, b, y = (t.detach()[0] for t in clouds)
    expected, f, g = reference("gaussian", a, x, b, y)
    loss, both = (SamplesLoss("gaussian", blur=BLUR, backend=backend, potentials=p) for p in (False, True))
    for args in ((a, x, b, y), (a[:, None], x, b[:, None], y), (None, a, x, None, b, y)):
        assert loss(*args).shape == () and close(loss(*args), expected, 1e-12)
        assert [t.shape for t in both(*args)] == [(1, 6), (1, 5)]
        assert close(both(*args)[0][0], f, 1e-12) and close(both(*args)[1][0], g, 1e-12)
    single = loss(a[None, :, None], x[None], b[None, :, None], y[None])
    assert single.shape == (1,) and close(single[0], expected, 1e-12)


def test_charges_of_any_sign_and_padding(clouds):
    a, x, b, y = (t.detach().clone() for t in clouds)
    a[:, 0], a[:, 1] = -0.4, 0.0
    value = SamplesLoss("energy")(a, x, b, y)
    assert close(value, reference("energy", a, x, b, y)[0], 1e-12)
    x[:, 1] = 50.0
    assert close(SamplesLoss("energy")(a, x, b, y), value, 1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_of_both_orders(loss, clouds):
    batch = tuple(t.detach()[:1, :3].clone().requires_grad_() for t in clouds)
    for function in (SamplesLoss(loss, blur=BLUR), SamplesLoss(loss, blur=BLUR, potentials=True)):
        assert gradcheck(function, batch)
        assert gradgradcheck(function, batch, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision(dtype, clouds):
    low = [t.detach().to(dtype) for t in clouds]
    value = SamplesLoss("energy")(*low)
    expected = reference("energy", *(t.double() for t in low))[0]
    assert value.dtype == dtype
    torch.testing.assert_close(value.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_loss_is_copied_and_shown():
    loss = SamplesLoss("laplacian", blur=0.2, backend="online")
    assert repr(loss) == "SamplesLoss(loss='laplacian', blur=0.2, potentials=False, backend='online')"
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(other) == repr(loss)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "loss must be one of energy, gaussian, laplacian; got 'sinkhorn': ddeq_fast.earth_movers_distance is"),
        ({"loss": "hausdorff"}, "loss must be one of energy, gaussian, laplacian; got 'hausdorff': ddeq_fast.chamfer"),
        ({"loss": "l2"}, "loss must be one of energy, gaussian, laplacian; got 'l2'"),
        ({"blur": 0}, "blur must lie in (0, inf), got 0"),
        ({"p": 1}, "p must be left at 2 for loss 'energy', got 1: it belongs to loss='sinkhorn'"),
        ({"reach": 1.0}, "reach must be left at None for loss 'energy', got 1.0: it belongs to loss='sinkhorn'"),
        ({"truncate": 3}, "truncate must be left at 5 for loss 'energy', got 3: sums here are exact"),
        ({"cost": "Norm2(X-Y)"}, "cost must be left at None for loss 'energy', got 'Norm2(X-Y)': ddeq_fast.MMDLoss("),
        ({"kernel": KERNELS}, "kernel must be left at None for loss 'energy', got"),
        ({"cluster_scale": 0.1}, "cluster_scale must be left at None for loss 'energy', got 0.1: sums here are exact"),
        ({"debias": False}, "debias must be left at True for loss 'energy', got False: it belongs to loss='sinkhorn'"),
        ({"backend": "dense"}, "backend must be one of auto, multiscale, online, tensorized; got 'dense'"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(options, message):
    with fails(ValueError, message):
        SamplesLoss(**({"loss": "energy", **options} if options else {}))


def test_defaults_that_are_given_are_accepted():
    SamplesLoss("gaussian", 2, 0.1, None, None, 0.5, None, None, None, None, True, False, False, "auto")
    assert SamplesLoss("energy", truncate=5, p=2.0).blur == 0.05


def test_bad_calls(clouds):
    a, x, b, y = (t.detach() for t in clouds)
    labels, loss = torch.zeros(6).int(), SamplesLoss("energy")
    with fails(ValueError, "l_x, labels of clusters, must be None, got Tensor: sums here are exact"):
        loss(labels, a[0], x[0], None, b[0], y[0])
    with fails(ValueError, "l_y, labels of clusters, must be None, got Tensor"):
        loss(None, a[0], x[0], labels[:5], b[0], y[0])
    with fails(TypeError, "a loss must be called with (x, y) or (a, x, b, y), got 3 arguments"):
        loss(a, x, y)
    with fails(ValueError, "a must have shape (2, 6), got (2, 5)"):
        loss(b, x, b, y)
    with fails(TypeError, "b has dtype torch.float32 but its cloud has torch.float64"):
        loss(a, x, b.float(), y)
    with fails(ValueError, "y has points in dimension 2 but x in 3"):
        loss(x, y[..., :2])
    with fails(ValueError, "x must be finite"):
        loss(x / 0, y)
    with fails(TypeError, "x must be a torch.Tensor, got list"):
        loss([[0.0]], y)
    with fails(TypeError, "potentials must be True or False, got 1"):
        SamplesLoss("energy", potentials=1)


@pytest.mark.parametrize("loss", LOSSES)
def test_against_geomloss_itself(loss, clouds):
    """Whose smallest distance, of each point to itself, is 1e-4 in the units of its kernel."""
    geomloss = pytest.importorskip("geomloss")
    options = {"loss": loss, "blur": BLUR, "backend": "tensorized"}
    ours, theirs = SamplesLoss(**options), geomloss.SamplesLoss(**options)
    least = {"energy": -1e-4, "gaussian": 0.0, "laplacian": float(torch.tensor(-1e-4).double().expm1())}[loss]
    a, _, b, _ = clouds
    own = 0.5 * least * (a.square().sum(1) + b.square().sum(1))
    assert close(ours(*clouds) + own, theirs(*clouds), 1e-9)
    found, expected = (torch.autograd.grad(each(*clouds).sum(), clouds) for each in (ours, theirs))
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert close(one + least * clouds[i] if i in (0, 2) else one, other, 1e-7)
    single = [t.detach()[0] for t in clouds]
    assert ours(*single).shape == theirs(*single).shape
    options["potentials"] = True
    for one, other, weights in zip(
        SamplesLoss(**options)(*single), geomloss.SamplesLoss(**options)(*single), (single[0], single[2]), strict=True
    ):
        assert one.shape == other.shape and close(one + least * weights, other, 1e-9)


def test_arguments_of_the_transport_losses_that_say_how_change_nothing(cloud):
    x, y = cloud(5, 3), cloud(4, 3)
    plain = SamplesLoss("energy")(x, y)
    assert torch.equal(SamplesLoss("energy", diameter=2.0, scaling=0.9, verbose=True)(x, y), plain)
