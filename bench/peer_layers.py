"""Implicit layers of other packages on one transport map: what `python -m bench peers` measures of them.

All take the F, the encoded clouds and the start of a `Setting`. They stop by measures of their own: each is given the
loosest of its tolerances with which its clouds are within the residual that ours is asked for.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.large import time_and_memory
from ddeq_fast import DDEQ, ImplicitFunction, Phantom, TransportMap
from ddeq_fast.solvers import Pushforward, quiet
from ddeq_fast.sums.radial import Riesz
from ddeq_fast.utils.differentiation import twice_differentiable
from ddeq_fast.utils.optional import require

# Steps of a phantom gradient; torchdeq's `grad`.
PHANTOM = 3
# Relative residual of the linear system of a gradient by the implicit function theorem, and most products with J^T.
LINEAR, PRODUCTS = 1e-5, 50
MOST_STEPS = 200
# Relative, of norms of differences.
TOLERANCES = tuple(10 ** (-k / 2) for k in range(2, 15))
# Of unrolled descent, whose memory grows with each.
UNROLLED = 40
RATES = tuple(10 ** (k / 2) for k in range(2, -5, -1))
# The reference: most of |F(z) - z| over most of |z|, in float64, and the linear residual of its gradient.
EXACT, EXACT_STEPS = 1e-10, 2000


@dataclass(frozen=True)
class Setting:
    """F with labels, clouds x (B, m, 3), labels (B, n, 3), a start (B, n, dim_z), and g (B, n, dim_z): the loss is
    their product with the particles. tol: relative MMD that is asked for."""

    network: TransportMap
    x: Tensor
    labels: Tensor
    start: Tensor
    g: Tensor
    tol: float

    def problem(self) -> Pushforward:
        """F with the context of the clouds, a graph of its own each time."""
        context = self.network.labelled(self.network.encode(self.x), self.labels)
        return Pushforward(self.network, context, labels=self.labels)

    def double(self) -> Setting:
        """The same in float64."""
        parts = (part.double() for part in (self.x, self.labels, self.start, self.g))
        return Setting(copy.deepcopy(self.network).double(), *parts, self.tol)

    def gradient(self, particles: Tensor, retain_graph: bool = False) -> Tensor:
        """Derivatives of the loss by all parameters of F, one after another."""
        wanted = list(self.network.parameters())
        loss = (particles * self.g).sum()
        found = torch.autograd.grad(loss, wanted, retain_graph=retain_graph, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])


def setting(batch: int = 32, points: int = 100, particles: int = 10, dim_z: int = 64, tol: float = 1e-2) -> Setting:
    """Normal clouds and a network as it is initialised, which contracts; seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TransportMap(dim_z, 3, dim_label=3)
        x, labels = torch.randn(batch, points, 3), torch.randn(particles, 3).expand(batch, -1, -1)
        start, g = torch.randn(batch, particles, dim_z), torch.randn(batch, particles, dim_z)
    return Setting(network, x, labels, start, g, tol)


def _ours(backward: str) -> Callable[[Setting, float], Callable[[], Tensor]]:
    def build(given: Setting, knob: float) -> Callable[[], Tensor]:
        way = Phantom(steps=PHANTOM) if backward == "phantom" else ImplicitFunction(tol=LINEAR, max_steps=PRODUCTS)
        layer = DDEQ(given.network, None, solver="auto", tol=knob, backward=way)

        def run() -> Tensor:
            with quiet():
                return layer(given.x, start=given.start, labels=given.labels).particles

        return run

    return build


def _torchdeq(solver: str, backward: str) -> Callable[[Setting, float], Callable[[], Tensor]]:
    def build(given: Setting, knob: float) -> Callable[[], Tensor]:
        deq = require("torchdeq", "torchdeq").get_deq(
            f_solver=solver,
            f_max_iter=MOST_STEPS,
            f_tol=knob,
            f_stop_mode="rel",
            b_solver=solver,
            b_max_iter=PRODUCTS,
            b_tol=LINEAR,
            b_stop_mode="rel",
            ift=backward == "ift",
            grad=PHANTOM,
        )

        def run() -> Tensor:
            context = given.problem().context
            return deq(lambda z: given.network(z, context), given.start)[0][0]

        return run

    return build


class _Bound(nn.Module):
    """F at a context, called as silva-networks calls a transition."""

    def __init__(self, network: TransportMap):
        super().__init__()
        self.network, self.context = network, None

    def forward(self, latent: Tensor, context: Tensor, *, latent_mask: Tensor, context_mask: Tensor) -> Tensor:
        return self.network(latent, self.context)


def _silva(kernel: str) -> Callable[[Setting, float], Callable[[], Tensor]]:
    def build(given: Setting, knob: float) -> Callable[[], Tensor]:
        bound, (batch, particles, dim_z) = _Bound(given.network), given.start.shape
        layer = importlib.import_module("silva_networks").SILVADistributionalDEQ(
            given.x.shape[-1],
            dim_z,
            particles=particles,
            transition=bound,
            kernel=kernel,
            bandwidth=(2 * dim_z) ** 0.5,  # between normal points; of "gaussian" alone
            step_size=knob * batch * particles,  # its objective is a mean over the batch, its weights are 1 / n
            max_iter=UNROLLED,
        )

        def run() -> Tensor:
            with twice_differentiable():
                bound.context = given.problem().context
                return layer(given.x, z0=given.start)

        return run

    return build


class Method(NamedTuple):
    """A layer and its backward. build: of a setting and a knob, which is one of `knobs`, makes the forward pass."""

    name: str
    backward: str
    package: str
    knobs: tuple[float, ...]
    build: Callable[[Setting, float], Callable[[], Tensor]]


def methods(given: Setting) -> list[Method]:
    """All that are compared, installed or not."""
    found = [Method("ddeq_fast, auto", way, "ddeq_fast", (given.tol,), _ours(way)) for way in ("phantom", "ift")]
    for solver, way in itertools.product(("fixed_point_iter", "anderson"), ("phantom", "ift")):
        found.append(Method(f"torchdeq, {solver}", way, "torchdeq", TOLERANCES, _torchdeq(solver, way)))
    for kernel in ("energy", "gaussian"):
        found.append(Method(f"silva-networks, {kernel}", "unrolled", "silva_networks", RATES, _silva(kernel)))
    return found


def residuals(given: Setting, particles: Tensor) -> tuple[float, float]:
    """Largest MMD(Z, F(Z)) of the batch, relative to that of the start, and most of |F(Z) - Z|."""
    with torch.no_grad():
        problem, z = given.problem(), particles.detach()
        y = problem.image(z)
        first = problem.squared_mmd(given.start, problem.image(given.start), Riesz(1.0))
        return float((problem.squared_mmd(z, y, Riesz(1.0)) / first).sqrt().max()), float((y - z).abs().max())


def reference(given: Setting) -> Tensor:
    """Derivatives by the parameters at an exact fixed point, by the implicit function theorem, in float64.

    Raises RuntimeError if F does not contract well enough to find it.
    """
    exact = given.double()
    problem, z = exact.problem(), exact.start
    with torch.no_grad():
        for _ in range(EXACT_STEPS):
            z, before = problem.image(z), z
            if float((z - before).abs().max()) <= EXACT * float(z.abs().max()):
                break
        else:
            raise RuntimeError(f"F does not come to rest in {EXACT_STEPS} evaluations: there is no reference")
    backward = ImplicitFunction(method="gmres", tol=EXACT, max_steps=300)
    return exact.gradient(backward.attach(problem, z)[0])


def choose(given: Setting, method: Method) -> float:
    """The first of its knobs whose clouds are within the tolerance, or the one that comes nearest."""
    reached = {}
    for knob in method.knobs if len(method.knobs) > 1 else ():
        reached[knob] = residuals(given, method.build(given, knob)())[0]
        if reached[knob] <= given.tol:
            return knob
    return min(reached, key=lambda knob: (math.isnan(reached[knob]), reached[knob]), default=method.knobs[0])


def measure(given: Setting, method: Method, exact: Tensor) -> dict:
    """What one method takes and reaches; "error" is that of its gradient against `exact`."""
    knob = choose(given, method)
    forward = method.build(given, knob)
    return {
        "method": method.name,
        "backward": method.backward,
        "knob": knob,
        **_reached(given, forward, exact),
        "forward_seconds": time_and_memory(forward)["seconds"],
        "peak_bytes": time_and_memory(lambda: given.gradient(forward()))["peak_bytes"],
    }


def _reached(given: Setting, forward: Callable[[], Tensor], exact: Tensor) -> dict:
    """Counts, residuals and the error of one pass, and the time of its backward, which is taken again and again."""
    particles, forth, back = _counted(given, forward)
    mmd, largest = residuals(given, particles)

    def gradient() -> Tensor:
        return given.gradient(particles, retain_graph=True)

    return {
        "evaluations": forth,
        "products": back,
        "residual": mmd,
        "largest": largest,
        "error": float((gradient().double() - exact).norm() / exact.norm()),
        "backward_seconds": time_and_memory(gradient)["seconds"],
    }


def _counted(given: Setting, forward: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """The particles, and how often a cloud is put through F on the way to them, and through J^T for a gradient."""
    forth, back = [0], [0]

    def noted(network, inputs, image):
        forth[0] += len(image)
        if image.requires_grad:
            image.register_hook(lambda g: back.__setitem__(0, back[0] + len(g)))

    handle = given.network.register_forward_hook(noted)
    try:
        particles = forward()
        seen = forth[0]
        given.gradient(particles, retain_graph=True)
    finally:
        handle.remove()
    return particles, seen / len(given.x), back[0] / len(given.x)
