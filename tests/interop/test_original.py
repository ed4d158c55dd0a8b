"""The original code's functions: its float64 results (commit 9fdbd99), keyword by keyword."""

from functools import partial

import numpy as np
import pytest
import torch

import references
from ddeq_fast import Gaussian, Riesz
from ddeq_fast.interop.original import (
    gaussian_kernel,
    gaussian_witness_function,
    mmd_gf,
    riesz_kernel,
    squared_mmd,
)
from problems import close

MMD, FLOW = (references.golden(name) for name in ("mmd", "flow"))

RIESZ = {"kernel": riesz_kernel, "autodiff": True, "rescale_autodiff": True}
PAIR = {"beta": [0.0, 0.0], "gamma_beta": [1.0, 1.0], "gamma_sigma": [1.0, 1.0]}
FLOW_CASES = {
    "riesz_target": {**RIESZ, "optim_kwargs": {"lr": 0.2}, "max_iter": 25},
    "riesz_target_stop": {**RIESZ, "optim_kwargs": {"lr": 0.2}, "max_iter": 500, "tol": 5e-2, "stop_frequency": 10},
    "riesz_gradstop": {
        **RIESZ,
        "optim_kwargs": {"lr": 0.2},
        "max_iter": 500,
        "tol": 0.2,
        "stop_frequency": 10,
        "stop_type": "grad",
    },
    "gaussian_witness_anneal": {"max_iter": 40, "sigma": 3.0, "gamma_sigma": 0.95, "min_sigma": 0.8},
    "gaussian_multi_rescaled": {
        **RIESZ,
        **PAIR,
        "kernel": gaussian_kernel,
        "sigma": [2.0, 0.7],
        "rescale_losses": True,
        "optim_kwargs": {"lr": 0.3},
        "max_iter": 30,
    },
    "riesz_adam": {**RIESZ, "optimizer": "adam", "optim_kwargs": {"lr": 0.05}, "max_iter": 30},
    "riesz_sgd_momentum_steplr": {
        **RIESZ,
        "optim_kwargs": {"lr": 0.1, "momentum": 0.8},
        "scheduler_kwargs": {"gamma": 0.9, "step_size": 5},
        "max_iter": 30,
    },
    "riesz_func": {**RIESZ, "optim_kwargs": {"lr": 0.5}, "max_iter": 30},
    "gaussian_func_witness": {"sigma": 2.0, "max_iter": 30},
    "riesz_func_frozen": {**RIESZ, "optim_kwargs": {"lr": 0.5}, "max_iter": 30},
    "riesz_padded": {**RIESZ, "optim_kwargs": {"lr": 0.2}, "max_iter": 25, "mask": True},
    "riesz_l2reg": {**RIESZ, "optim_kwargs": {"lr": 0.2}, "max_iter": 25, "reg": 0.1},
}


def tensor(key):
    return torch.from_numpy(FLOW[key])


def affine(z):
    return z @ tensor("affine_matrix") + tensor("affine_offset")


def flow_arguments(name):
    """Start, and target or map, of a golden case."""
    if name == "riesz_padded":
        return {"x0": tensor("x0_padded"), "target_tensor": tensor("target_padded")}
    if "func" in name:
        frozen = {"grad_mask": tensor("frozen_mask")} if "frozen" in name else {}
        return {"x0": tensor("x0"), "func": affine, **frozen}
    return {"x0": tensor("x0"), "target_tensor": tensor("target")}


@pytest.mark.parametrize("name", FLOW_CASES)
def test_golden_flows(name):
    options = {"tol": 1e-12, "stop_type": "mmd", "beta": 0.0, **FLOW_CASES[name]}
    final, _, info = mmd_gf(**flow_arguments(name), **options)
    assert np.abs(final.numpy() - FLOW[f"{name}/final"]).max() <= 1e-9
    assert int(info["nstep"]) == int(FLOW[f"{name}/nstep"])


def test_golden_flows_are_all_there():
    assert set(FLOW_CASES) == {key.split("/")[0] for key in FLOW if key.endswith("/final")}


def golden_kernel(name):
    """(kernel, sigma) of "riesz_r0.5" or "gaussian_s10"."""
    family, value = name.removesuffix("_padded").split("_")
    if family == "riesz":
        return (riesz_kernel if value == "r1" else partial(riesz_kernel, r=float(value[1:]))), 1.0
    return gaussian_kernel, float(value[1:])


@pytest.mark.parametrize("key", [key.removesuffix("/squared_mmd") for key in MMD if key.endswith("/squared_mmd")])
def test_golden_squared_mmd_and_gradients(key):
    dimension, name = key.split("/")
    kernel, sigma = golden_kernel(name)
    padded = "_padded" if name.endswith("_padded") else ""
    x, y = (torch.from_numpy(MMD[f"{dimension}/{cloud}{padded}"]).requires_grad_() for cloud in "xy")
    value = squared_mmd(x, y, sigma=sigma, kernel=kernel, mask_x=bool(padded), mask_y=bool(padded))
    assert close(value.detach(), torch.from_numpy(MMD[f"{key}/squared_mmd"]), 1e-10)
    for cloud, gradient in zip("xy", torch.autograd.grad(value.sum(), (x, y)), strict=True):
        assert close(gradient, torch.from_numpy(MMD[f"{key}/grad_{cloud}"]), 1e-10)


@pytest.mark.parametrize("key", [key.removesuffix("/witness_z") for key in MMD if key.endswith("/witness_z")])
def test_golden_witness(key):
    dimension, name = key.split("/")
    kernel, sigma = golden_kernel(name)
    x, y, z = (torch.from_numpy(MMD[f"{dimension}/{cloud}"]) for cloud in "xyz")
    value = gaussian_witness_function(x, y, z, sigma=sigma, kernel=kernel)
    assert close(value, torch.from_numpy(MMD[f"{key}/witness_z"]), 1e-10)


def test_witness_with_padding(cloud):
    """In all three clouds; zero where z is padding."""
    x, y, z = cloud(2, 5, 3), cloud(2, 6, 3), cloud(2, 4, 3)
    x[0, 3:], y[1, 4:], z[:, 1] = 0, 0, 0
    value = gaussian_witness_function(x, y, z, 0.9, True, True, True)
    a, b = ((points != 0).any(-1).double() for points in (x, y))
    expected = torch.from_numpy(references.witness(z, x, y, Gaussian(0.9), a, b))
    assert not value[:, 1].any() and close(value[:, [0, 2, 3]], expected[:, [0, 2, 3]])


def test_functions_of_single_clouds(cloud):
    x, y, z = cloud(5, 3), cloud(6, 3), cloud(4, 3)
    assert squared_mmd(x, y).item() == pytest.approx(references.squared_mmd(x, y, Gaussian(1.0)))
    expected = references.witness(z, x, y, Riesz(1.0))
    assert close(gaussian_witness_function(x, y, z, kernel=riesz_kernel), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("matrix", "kernel"),
    [
        (partial(gaussian_kernel, sigma=0.7), Gaussian(0.7)),
        (riesz_kernel, Riesz(1.0)),
        (partial(riesz_kernel, r=1.5), Riesz(1.5)),
    ],
)
def test_kernels_are_functions_too(cloud, matrix, kernel):
    """A row of the matrix is the potential of a unit charge."""
    x, y = cloud(2, 3, 4), cloud(2, 5, 4)
    value = matrix(x, y)
    assert value.shape == (2, 3, 5)
    for j in range(5):
        expected = references.potential(x, y[:, [j]], torch.ones(2, 1).double(), kernel)
        assert close(value[..., j], torch.from_numpy(expected))


def plain_flow(x, image, steps, optimizer, options, *, times_n=False, reg=0.0, p=2.0, weights=None):
    """The flow of the Riesz 1 objective with autograd and torch.optim: (last cloud, gradient norms)."""
    x = x.clone().requires_grad_()
    optimizer = optimizer([x], **options)
    a = torch.ones_like(x[..., 0]) if weights is None else weights
    pairs = (a / a.sum(1, keepdim=True))[:, :, None] * (a / a.sum(1, keepdim=True))[:, None]

    def energy(u, v):
        return (pairs * torch.linalg.vector_norm(u[:, :, None] - v[:, None], dim=-1)).sum()

    norms = []
    for _ in range(steps):
        y = image(x)
        loss = energy(x, y) - (energy(x, x) + energy(y, y)) / 2
        loss = loss + reg * torch.linalg.vector_norm(x, p, dim=-1).mean(1).sum()
        (x.grad,) = torch.autograd.grad(loss, x)
        x.grad *= a.sum(1)[:, None, None] if times_n else 1
        norms.append(float(x.grad.norm()))
        optimizer.step()
    return x.detach(), norms


QUIET = {"beta": 0.0, "tol": 0.0, "kernel": riesz_kernel, "autodiff": True}


@pytest.fixture
def start(cloud):
    return 2 * cloud(3, 5, 2)


@pytest.mark.parametrize("times_n", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("sgd", {"lr": 0.4}),
        ("sgd", {"lr": 0.4, "momentum": 0.5, "nesterov": True, "weight_decay": 0, "foreach": None}),
        ("adam", {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-2, "amsgrad": False}),
    ],
)
def test_optimizers_are_those_of_torch(start, optimizer, options, times_n):
    torchs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    expected, _ = plain_flow(start, affine, 12, torchs, options, times_n=times_n)
    final, _, _ = mmd_gf(
        affine, start, 12, optimizer=optimizer, optim_kwargs=options, rescale_autodiff=times_n, **QUIET
    )
    assert close(final, expected, 1e-9)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 1.0), ("adam", 1e-3)])
def test_step_sizes_where_none_is_given(start, optimizer, lr):
    options = {"optimizer": optimizer, **QUIET}
    default = mmd_gf(affine, start, 3, **options)[0]
    assert torch.equal(default, mmd_gf(affine, start, 3, optim_kwargs={"lr": lr}, **options)[0])
    without = mmd_gf(affine, start, 3, optim_kwargs={}, **options)[0]  # torch.optim's own
    assert torch.equal(without, mmd_gf(affine, start, 3, optim_kwargs={"lr": 1e-3}, **options)[0])


@pytest.mark.parametrize("times_n", [False, True])
def test_regulariser_counts_padding(start, times_n):
    start[:, 3:] = 0
    options = {"optim_kwargs": {"lr": 0.3}, "rescale_autodiff": times_n, "mask": True, "reg": 0.2, "reg_p": 3.0}
    final, _, _ = mmd_gf(lambda z: 0.5 * z, start, 8, **options, **QUIET)
    weights = (start != 0).any(-1).double()
    expected, _ = plain_flow(
        start, lambda z: 0.5 * z, 8, torch.optim.SGD, {"lr": 0.3}, times_n=times_n, reg=0.2, p=3.0, weights=weights
    )
    assert close(final, expected, 1e-9) and not final[:, 3:].any()


@pytest.mark.parametrize("times_n", [False, True])
@pytest.mark.parametrize("stop_mode", ["abs", "rel"])
def test_stop_on_the_gradient(start, stop_mode, times_n):
    """Of the whole batch, as its optimizer sees it."""
    options = {"optim_kwargs": {"lr": 0.3 if times_n else 1.5}, "rescale_autodiff": times_n, **QUIET}
    _, norms = plain_flow(start, affine, 40, torch.optim.SGD, options["optim_kwargs"], times_n=times_n)
    values = np.array(norms) / (norms[0] if stop_mode == "rel" else 1)
    options["tol"] = float(np.sqrt(values[9] * values[10]))  # between two steps
    assert (values[:10] > options["tol"]).all()
    _, _, info = mmd_gf(affine, start, 40, stop_mode=stop_mode, stop_type="grad", stop_frequency=1, **options)
    assert int(info["nstep"]) == 10
    assert float(info[f"{stop_mode}_lowest"]) == info["stop_crit_value"] == pytest.approx(values[10], rel=1e-8)


@pytest.mark.parametrize("stop_mode", ["abs", "rel"])
def test_stop_on_the_mmd(start, stop_mode):
    """Squared, and the mean of the batch."""
    options = {**QUIET, "optim_kwargs": {"lr": 0.3}, "rescale_autodiff": True, "indexing": list(range(1, 31))}
    _, clouds, _ = mmd_gf(affine, start, 30, **options)
    values = np.array([references.squared_mmd(z, affine(z), Riesz(1.0)).mean() for z in [start, *clouds]])
    values /= values[0] if stop_mode == "rel" else 1
    options["tol"] = float(np.sqrt(values[9] * values[10]))
    assert (values[:10] > options["tol"]).all()
    final, _, info = mmd_gf(affine, start, 30, stop_mode=stop_mode, stop_type="mmd", stop_frequency=5, **options)
    assert int(info["nstep"]) == 10 and torch.equal(final, clouds[9])
    assert float(info[f"{stop_mode}_lowest"]) == info["stop_crit_value"] == pytest.approx(values[10], rel=1e-8)


def test_clouds_kept(start):
    options = {**QUIET, "optim_kwargs": {"lr": 0.3}, "rescale_autodiff": True}
    every = {steps: mmd_gf(affine, start, steps, **options)[0] for steps in (1, 4, 7, 10)}
    for indexing, expected in (([4, 10], [4, 10]), (4, [1, 4, 7, 10]), (1, [1]), (0, []), (None, [])):
        _, clouds, info = mmd_gf(affine, start, 10, indexing=indexing, **options)
        assert info["iter_intermediates"] == expected
        assert all(torch.equal(cloud, every[step]) for cloud, step in zip(clouds, expected, strict=True))


def test_a_flow_that_stops_keeps_its_last_cloud(start):
    options = {**QUIET, "optim_kwargs": {"lr": 0.3}, "rescale_autodiff": True, "tol": 0.5, "stop_frequency": 1}
    final, clouds, info = mmd_gf(affine, start, 200, indexing=[1, 150, 200], stop_type="mmd", **options)
    nstep = int(info["nstep"])
    assert 1 < nstep < 150 and info["iter_intermediates"] == [1, nstep, nstep]
    assert torch.equal(clouds[1], final) and torch.equal(clouds[2], final) and not torch.equal(clouds[0], final)


@pytest.mark.parametrize("fixed", [False, True])
def test_single_clouds(start, fixed):
    """As a batch of one; a map sees them without the batch axis."""
    options = {"beta": 0.0, "tol": 0.0, "max_iter": 9, "indexing": [3], "optim_kwargs": {"lr": 0.3}}
    frozen = torch.arange(5)[:, None] == 2
    seen = []

    def func(z):
        seen.append(z.shape)
        return affine(z)

    one = {"target_tensor": affine(start[0])} if fixed else {"func": func}
    batch = {"target_tensor": affine(start[:1])} if fixed else {"func": affine}
    final, kept, _ = mmd_gf(
        x0=start[0],
        grad_mask=frozen,
        callback=lambda errors, *clouds, **_: seen.extend(cloud.shape for cloud in clouds),
        **one,
        **options,
    )
    expected, expected_kept, _ = mmd_gf(x0=start[:1], grad_mask=frozen[None], **batch, **options)
    assert torch.equal(final, expected[0]) and torch.equal(kept[0], expected_kept[0][0])
    assert set(seen) == {start[0].shape} and torch.equal(final[2], start[0, 2])


def test_callback_is_called_as_there(start):
    calls = []

    def callback(errors, x0, x, target, *, step, **rest):
        errors["step"].append(step)
        calls.append((step, x0, x, target, rest))

    keywords = {"sigma": 2.0, "gamma_sigma": 0.5, "min_sigma": 0.3, "beta": 0.0, "tol": 0.0, "mask": False}
    final, kept, info = mmd_gf(
        affine,
        start,
        10,
        indexing=[4],
        callback=callback,
        timestamps_callback=[4, 7],
        callback_kwargs={"extra": 1},
        **keywords,
    )
    assert info["errors"] == {"step": [0, 4, 7, 10]}
    assert torch.equal(calls[0][2], start) and torch.equal(calls[1][2], kept[0]) and torch.equal(calls[-1][2], final)
    for step, x0, x, target, rest in calls:
        assert torch.equal(x0, start) and torch.equal(target, affine(x)) and not target.requires_grad
        assert rest.pop("sigmas") == [max(2.0 * 0.5 ** max(step - 1, 0), 0.3)]
        assert rest == {
            "initial_sigmas": [2.0],
            "last_sigmas": [0.3],
            "kernel": gaussian_kernel,
            "stop_type": "grad",
            "stop_mode": "rel",
            "mask": False,
            "extra": 1,
        }
    assert (
        len(mmd_gf(affine, start, 10, callback=callback, timestamps_callback=3, **keywords)[2]["errors"]["step"]) == 4
    )


def test_noise_displaces_where_the_witness_is_taken(start):
    """Its level falls by gamma_beta a step, and padding takes no part."""
    target, x = affine(start)[:, :4], start.clone()
    torch.manual_seed(1)
    final, _, _ = mmd_gf(x0=start, target_tensor=target, max_iter=5, tol=0.0, beta=0.7, gamma_beta=0.5, sigma=1.5)
    torch.manual_seed(1)
    for step in range(5):
        displaced = (x + 0.7 * 0.5**step * torch.randn_like(x)).requires_grad_()
        value = gaussian_witness_function(x, target, displaced, 1.5).sum()
        x = x - torch.autograd.grad(value, displaced)[0]
    assert close(final, x, 1e-9) and not close(final, mmd_gf(x0=start, target_tensor=target, beta=0.0, max_iter=5)[0])


def test_several_bandwidths_without_rescaling_follow_a_share_of_the_first(start):
    """The objective's average, and the gradient with respect to the first bandwidth's copy of the particles."""
    options = {"beta": 0.0, "tol": 0.0, "max_iter": 6, "autodiff": True}
    several = mmd_gf(affine, start, **{**options, **PAIR, "beta": [0.0, 0.0]}, sigma=[1.5, 0.4])[0]
    assert close(several, mmd_gf(affine, start, sigma=1.5, optim_kwargs={"lr": 0.5}, **options)[0])
    assert not close(several, mmd_gf(affine, start, sigma=1.5, **options)[0], 1e-3)


def test_nothing_given_is_changed(start):
    options, x0 = {"optim_kwargs": {"lr": 0.3}, "scheduler_kwargs": {"step_size": 2}}, start.clone().requires_grad_()
    final = mmd_gf(affine, x0, 3, **options, **QUIET)[0]
    assert torch.equal(x0.detach(), start) and not final.requires_grad
    assert options == {"optim_kwargs": {"lr": 0.3}, "scheduler_kwargs": {"step_size": 2}}
    with torch.no_grad():
        assert torch.equal(mmd_gf(affine, x0, 3, **options, **QUIET)[0], final)
