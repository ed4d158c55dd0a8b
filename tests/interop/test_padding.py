"""Padding as the original code treats it, against its float64 results (commit 9fdbd99)."""

from pathlib import Path

import numpy as np
import torch
from problems import close

from ddeq_fast.interop.checkpoints import from_original
from ddeq_fast.networks import TransportMap

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "completion2d.npz", allow_pickle=False)


def test_transport_that_attends_to_padding():
    """Observed particles are held in every layer there: with one self-attention layer, that touches no other."""
    weights = {k.removeprefix("state_dict/"): torch.from_numpy(GOLDEN[k]) for k in GOLDEN if "/deq_model." in k}
    weights = {k.removeprefix("ddeq.transport."): value for k, value in from_original(weights).items()}
    sizes = {"heads": 4, "dim_lift": (8, 8, 16), "dim_hidden": 64, "dim_final": 64, "cross_layers": 2}
    transport = TransportMap(16, 2, attend_to_padding=True, **sizes)
    transport.load_state_dict(weights)
    transport.double()

    x, z, z_mask, observed, expected = (
        torch.from_numpy(GOLDEN[key])
        for key in ("x", "embedding/forward", "z_mask", "observed_mask", "transport/z_init")
    )
    z, z_weights, x_weights = z * z_mask, z_mask.squeeze(-1).double(), (x != 0).any(-1).double()
    image = transport(z, transport.encode(x, x_weights), z_weights)
    free = (z_mask & ~observed).squeeze(-1)
    assert (x_weights == 0).any() and (z_weights == 0).any() and free.any()
    assert close(image[free].detach(), expected[free], 1e-10)
    assert not image[z_weights == 0].any()
