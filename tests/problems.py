"""Maps with known behaviour, small networks and helpers shared by the tests of networks, solvers and models."""

import re

import pytest
import torch

from ddeq_fast import Gaussian
from ddeq_fast.data.dataset import Split, generator
from ddeq_fast.networks import TransportMap
from ddeq_fast.solvers import SGD, Adam, Anderson, Auto, MMDFlow


def fails(error, message):
    """The whole message, taken literally."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def close(value, expected, tolerance=1e-12):
    """Largest difference within `tolerance` of the largest expected value."""
    assert value.shape == expected.shape and value.dtype == expected.dtype
    return bool((value - expected).abs().max() <= tolerance * expected.abs().max())


def rings_and_discs(count, seed, sizes, radius):
    """A split of `count` clouds of sizes[0] to sizes[1] - 1 points: rings (label 0), discs of this radius (label 1)."""
    draw = generator(seed)
    clouds, labels = [], torch.arange(count) % 2
    for label in labels.tolist():
        n = int(torch.randint(*sizes, (), generator=draw))
        angle = torch.rand(n, generator=draw) * 6.28
        length = 1.0 if label == 0 else radius * torch.rand(n, generator=draw)
        clouds.append(torch.stack((angle.cos() * length, angle.sin() * length), 1))
    return Split(clouds, [torch.ones(len(cloud)) for cloud in clouds], labels)


def small_transport(seed=0, dtype=torch.float64, **options):
    """A transport map on points in dimension 8 and 2 with two cross-attention layers, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"num_heads": 2, "dim_lift": (4, 6, 8), "dim_hidden": 12, "dim_final": 10, "cross_layers": 2}
        return TransportMap(8, 2, **{**sizes, **options}).to(dtype)


class Recorder:
    """A map func(z, context, weights) that notes the batch sizes it is called with, and whether for a graph."""

    def __init__(self, func):
        self.func, self.batches, self.tracked = func, [], 0

    def __call__(self, z, context, weights):
        y = self.func(z, context, weights)
        self.batches.append(len(z))
        self.tracked += y.requires_grad
        return y


def affine(z, context, weights):
    """z -> z A + b with context (A, b), (B, d, d) and (B, d)."""
    matrix, offset = context
    return z @ matrix + offset[:, None]


def affine_context(rates, d=3, seed=0, dtype=torch.float64):
    """(A, b) for `affine`: one symmetric A a sample, of the spectral radius given for it."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(len(rates), d, d, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.mT
    radius = torch.linalg.eigvalsh(matrix).abs().amax(-1)
    matrix = matrix * (torch.tensor(rates, dtype=torch.float64) / radius)[:, None, None]
    return matrix.to(dtype), torch.randn(len(rates), d, generator=generator, dtype=torch.float64).to(dtype)


def affine_solution(context):
    """The point p = p A + b of every sample, (B, d)."""
    matrix, offset = context
    return torch.linalg.solve(torch.eye(matrix.shape[-1]).to(matrix) - matrix.mT, offset)


def half_turn(z, context, weights):
    """Projection onto the unit circle and half a turn: antipodal pairs are fixed as measures, no point is."""
    return -z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)


# Tolerances that the samples of `problem` reach after different numbers of evaluations.
STEPS = {"lr": 0.3, "max_steps": 100, "check_every": 1}
FLOW = {**STEPS, "tol": 0.4}
SOLVERS = {
    "flow": MMDFlow(**FLOW),
    "witness": MMDFlow(kernel=Gaussian(3.0), gradient="witness", **{**FLOW, "lr": 1.0}),
    "momentum": MMDFlow(optimizer=SGD(0.5), **FLOW),
    "nesterov": MMDFlow(optimizer=SGD(0.5, nesterov=True), **FLOW),
    "adam": MMDFlow(optimizer=Adam(), **{**FLOW, "lr": 0.05}),
    "gradient": MMDFlow(kernel=Gaussian(3.0), stop_on="gradient", **FLOW),
    "anderson": Anderson(tol=1e-2),
    "auto": Auto(tol=0.3, anderson={"max_steps": 2}, flow=STEPS),
}
FLOWS = [name for name, solver in SOLVERS.items() if isinstance(solver, MMDFlow)]
