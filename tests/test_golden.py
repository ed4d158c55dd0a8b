"""Flows and classifiers against float64 results of the authors' public code (commit 9fdbd99)."""

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Gaussian, Riesz
from ddeq_fast.interop.original.first_kernel import FirstKernelFlow
from ddeq_fast.interop.original.state_dicts import from_original
from ddeq_fast.models import Classifier
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import SGD, Adam, FixedTarget, MMDFlow, Pushforward

FLOW = references.golden("flow")
# Unless a case says otherwise: Riesz 1, and stop at MMD^2 <= 1e-12 of its start (batch mean), seen every 100 steps.
REFERENCE = {"kernel": Riesz(1.0), "tol": 1e-6, "check_every": 100, "stop_together": True}
FLOW_CASES = {
    "riesz_target": {"lr": 0.2, "max_steps": 25},
    "riesz_target_stop": {"lr": 0.2, "max_steps": 500, "tol": 5e-2**0.5, "check_every": 10},
    "riesz_gradstop": {"lr": 0.2, "max_steps": 500, "stop_on": "gradient", "tol": 0.2, "check_every": 10},
    "gaussian_witness_anneal": {
        "kernel": Gaussian(3.0),
        "gradient": "witness",
        "lr": 1.0,
        "max_steps": 40,
        "anneal": (0.95, 0.8),
    },
    "gaussian_multi_rescaled": {
        "kernel": (Gaussian(2.0), Gaussian(0.7)),
        "lr": 0.3,
        "max_steps": 30,
        "rescale": True,
    },
    "riesz_adam": {"lr": 0.05, "max_steps": 30, "optimizer": Adam()},
    "riesz_sgd_momentum_steplr": {"lr": 0.1, "max_steps": 30, "optimizer": SGD(0.8), "lr_decay": (0.9, 5)},
    "riesz_func": {"lr": 0.5, "max_steps": 30},
    "gaussian_func_witness": {"kernel": Gaussian(2.0), "lr": 1.0, "max_steps": 30},
    "riesz_func_frozen": {"lr": 0.5, "max_steps": 30},
    "riesz_padded": {"lr": 0.2, "max_steps": 25},
    "riesz_l2reg": {"lr": 0.2, "max_steps": 25, "regulariser": (0.1, 2.0)},
}


def flow_problem(name):
    """(problem, start) of a case: a fixed target, or the moving target z -> z A + b."""
    x0, target, matrix, offset, frozen, x0_padded, target_padded = (
        torch.from_numpy(FLOW[key])
        for key in ("x0", "target", "affine_matrix", "affine_offset", "frozen_mask", "x0_padded", "target_padded")
    )
    if name == "riesz_padded":
        weights, target_weights = ((cloud != 0).any(-1).double() for cloud in (x0_padded, target_padded))
        return FixedTarget(target_padded, target_weights, weights), x0_padded
    if "func" in name:
        affine = Pushforward(lambda z, context, weights: z @ matrix + offset)
        affine.frozen = frozen.squeeze(-1) if "frozen" in name else None
        return affine, x0
    return FixedTarget(target), x0


@pytest.mark.parametrize("name", FLOW_CASES)
def test_flow(name):
    problem, start = flow_problem(name)
    particles, info = FirstKernelFlow(**{**REFERENCE, **FLOW_CASES[name]}).solve(problem, start)
    assert np.abs(particles.numpy() - FLOW[f"{name}/final"]).max() <= 1e-9
    assert (info.evaluations - 1).tolist() == [int(FLOW[f"{name}/nstep"])] * 3


def test_flow_cases_are_all_of_the_file():
    assert set(FLOW_CASES) == {key.split("/")[0] for key in FLOW if key.endswith("/final")}


@pytest.fixture(scope="module", params=["classifier2d", "classifier3d"])
def classifier(request):
    """(golden file, model with its weights, x, z0)."""
    golden = references.golden(request.param)
    state_dict = {
        key.removeprefix("state_dict/"): torch.from_numpy(golden[key])
        for key in golden
        if key.startswith("state_dict/")
    }
    transport = TransportMap(
        16, golden["x"].shape[-1], num_heads=4, dim_lift=(8, 8, 16), dim_hidden=64, dim_final=64, cross_layers=2
    )
    steps, lr = int(golden["flow_steps"]), float(golden["flow_lr"])
    model = Classifier(transport, golden["logits"].shape[-1], solver=MMDFlow(lr=lr, max_steps=steps, tol=0.0))
    state_dict = from_original(state_dict)
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    assert (missing, unexpected) == (["ddeq.start"], [])  # the reference draws its start anew in every call
    return golden, model.double().eval(), torch.from_numpy(golden["x"]), torch.from_numpy(golden["z0"])


def assert_close(value, expected, tolerance=1e-8):
    """Largest difference relative to the largest expected value."""
    assert value.shape == expected.shape
    assert np.abs(value.detach().numpy() - expected).max() <= tolerance * np.abs(expected).max()


def test_classifier_transport(classifier):
    golden, model, x, z0 = classifier
    transport = model.ddeq.transport
    assert_close(transport(z0, transport.encode(x)), golden["transport/z0"])


def test_classifier_equilibrium_and_logits(classifier):
    golden, model, x, z0 = classifier
    with torch.no_grad():
        logits, equilibrium = model(x, start=z0)
    assert_close(equilibrium.particles, golden["z_star"])
    assert_close(logits, golden["logits"])
    assert (equilibrium.info.evaluations - 1 == int(golden["flow_steps"])).all()


def test_classifier_loss_and_gradients(classifier):
    """In evaluation mode the reference tracks no evaluation of F: it has gradients in the head alone."""
    golden, model, x, z0 = classifier
    with torch.no_grad():
        particles = model.ddeq(x, start=z0).particles
    loss = torch.nn.functional.cross_entropy(model.head(particles.amax(1)), torch.from_numpy(golden["labels"]))
    assert_close(loss, golden["loss"])
    expected = {"weight": "grad/classifier.linear.weight", "bias": "grad/classifier.linear.bias"}
    assert {key for key in golden if key.startswith("grad/")} == set(expected.values())
    for name, grad in zip(expected, torch.autograd.grad(loss, model.head.parameters()), strict=True):
        assert_close(grad, golden[expected[name]])
