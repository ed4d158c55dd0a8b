"""Completion and padding as in the original code, against its float64 results (commit 9fdbd99)."""

import pytest
import torch

from ddeq_fast import squared_mmd
from ddeq_fast.clouds import compact
from ddeq_fast.interop.original.state_dicts import load_original
from ddeq_fast.models import Completer
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import MMDFlow
from problems import close
from references import golden

GOLDEN = golden("completion2d")
X, FULL, START, OBSERVED, PRESENT = (
    torch.from_numpy(GOLDEN[key]) for key in ("x", "full", "z_init", "observed_mask", "z_mask")
)
OBSERVED, PRESENT = OBSERVED.squeeze(-1), PRESENT.squeeze(-1)
WEIGHTS = (X != 0).any(-1).double()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The original's weights, from a checkpoint as it writes them, in a model that treats padding as it does."""
    path = tmp_path_factory.mktemp("original") / "weights.pth"
    prefix = "state_dict/"
    torch.save({k.removeprefix(prefix): torch.from_numpy(GOLDEN[k]) for k in GOLDEN if k.startswith(prefix)}, path)
    sizes = {"num_heads": 4, "dim_lift": (8, 8, 16), "dim_hidden": 64, "dim_final": 64, "cross_layers": 2}
    transport = TransportMap(16, 2, attend_to_padding=True, **sizes)
    steps, lr = int(GOLDEN["flow_steps"]), float(GOLDEN["flow_lr"])
    model = Completer(transport, solver=MMDFlow(lr=lr, max_steps=steps, tol=0.0))
    load_original(model, path)
    return model.double().eval()


def test_lift_and_its_inverse(model):
    lifted = torch.from_numpy(GOLDEN["embedding/forward"])
    assert close(model.lift(START).detach(), lifted, 1e-12)
    assert close(model.lift.inverse(lifted).detach(), torch.from_numpy(GOLDEN["embedding/inverse"]), 1e-12)


def test_transport_that_attends_to_padding(model):
    """Observed particles are held in every layer there: with one self-attention layer, that touches no other."""
    z, expected = (torch.from_numpy(GOLDEN[key]) for key in ("embedding/forward", "transport/z_init"))
    transport, z, z_weights = model.ddeq.transport, z * PRESENT[..., None], PRESENT.double()
    image = transport(z, transport.encode(X, WEIGHTS), z_weights)
    free = PRESENT & ~OBSERVED
    assert (WEIGHTS == 0).any() and (z_weights == 0).any() and free.any()
    assert close(image[free].detach(), expected[free], 1e-10)
    assert not image[z_weights == 0].any()


def test_completion_loss_and_gradients(model):
    """In evaluation mode the original tracks no evaluation of F, and reports the gradients of its coupling alone."""
    free = PRESENT & ~OBSERVED
    start, expected, observed = (
        compact(points, mask.double())
        for points, mask in ((START, free), (torch.from_numpy(GOLDEN["completed"]), free), (X, OBSERVED))
    )
    assert torch.equal(model.draw_start(X, WEIGHTS).mask, start.mask)
    with torch.no_grad():
        completion = model(X, WEIGHTS, start=start)
    info = completion.equilibrium.info
    assert (info.evaluations - 1 == int(GOLDEN["flow_steps"])).all()
    assert (expected.points - start.points)[expected.mask].abs().amin() > 0.01
    assert close(completion.points, torch.cat((observed.points, expected.points), 1), 1e-8)
    assert torch.equal(completion.weights > 0, torch.cat((observed.mask, expected.mask), 1))

    losses = squared_mmd(completion.points, FULL, x_weights=completion.weights, y_weights=(FULL != 0).any(-1).double())
    assert abs(float(losses.mean()) - float(GOLDEN["loss"])) <= 1e-8 * float(GOLDEN["loss"])
    names = {k.removeprefix("grad/embedding_model.layers.0.") for k in GOLDEN if k.startswith("grad/")}
    assert len(names) == len(list(model.lift.parameters()))
    # Only zeros: what q appends is dropped by its inverse, unread.
    assert not any(GOLDEN[f"grad/embedding_model.layers.0.{name}"].any() for name in names)
    assert not model.lift.inverse(completion.equilibrium.particles).requires_grad
