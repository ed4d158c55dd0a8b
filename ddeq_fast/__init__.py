"""Distributional deep equilibrium models on fused kernel sums.

A layer finds the cloud that its network maps onto itself: `DDEQ` is that layer, `Classifier` and `Completer` are models
around it, `TransportMap` is its network, and `solve` finds such clouds for any function. All that compares clouds is
the potential and field of a charged cloud: `potential`, `field`, `squared_mmd`, `witness`, `wasserstein_gradient`.

The rooms, each of which knows only those above it:

    utils        checks of arguments, files, trees of tensors, warnings
    kernels      Triton kernels and their launchers
    sums         radial kernels, potential and field, MMD, and the backends that carry sums out
    distances    nearest points, Chamfer and earth mover's distance, metrics of completion, entropy
    clouds       clouds of several sizes in one batch
    networks     the transport map: bilinear layers, attention, the invertible lift
    solvers      fixed points of clouds: the MMD flow, Anderson, auto
    gradients    derivatives of a fixed point: phantom, implicit function theorem, bilevel
    models       the layer, the classifier, the completer
    diagnostics  what an equilibrium is worth: the audit of a model
    data         data sets, file formats, partial clouds
    training     configuration, the loop, metrics, pictures
    interop      functions, network and checkpoints of the original code; torchdeq; geomloss
    commands     the command line `ddeq-fast`

Names are loaded when they are first used: importing the package is quick, and needs torch and numpy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddeq_fast.clouds import PointClouds, in_buckets, pad
    from ddeq_fast.diagnostics import Audit, audit
    from ddeq_fast.distances.chamfer import chamfer
    from ddeq_fast.distances.completion import density_aware_chamfer, f_score, fidelity
    from ddeq_fast.distances.entropy import kde_entropy
    from ddeq_fast.distances.losses import ChamferLoss, MMDLoss
    from ddeq_fast.distances.points import nearest
    from ddeq_fast.distances.transport import earth_movers_distance
    from ddeq_fast.gradients import Bilevel, ImplicitFunction, Phantom
    from ddeq_fast.models import DDEQ, Classifier, Completer, Equilibrium
    from ddeq_fast.networks import Lift, TransportMap
    from ddeq_fast.solvers import Anderson, Auto, ConvergenceWarning, FixedTarget, MMDFlow, Pushforward, solve
    from ddeq_fast.sums.fields import field, potential, potential_and_field
    from ddeq_fast.sums.mmd import mmd_distance, squared_mmd, wasserstein_gradient, witness
    from ddeq_fast.sums.radial import Gaussian, InverseMultiquadric, Laplacian, Mixture, RadialKernel, Riesz

__version__ = "0.1.0"

_ROOMS = {
    "models": ("DDEQ", "Classifier", "Completer", "Equilibrium"),
    "diagnostics": ("audit", "Audit"),
    "networks": ("TransportMap", "Lift"),
    "clouds": ("PointClouds", "pad", "in_buckets"),
    "solvers": ("solve", "Pushforward", "FixedTarget", "MMDFlow", "Anderson", "Auto", "ConvergenceWarning"),
    "gradients": ("Phantom", "ImplicitFunction", "Bilevel"),
    "sums.fields": ("potential", "field", "potential_and_field"),
    "sums.mmd": ("squared_mmd", "mmd_distance", "witness", "wasserstein_gradient"),
    "sums.radial": ("RadialKernel", "Riesz", "Gaussian", "Laplacian", "InverseMultiquadric", "Mixture"),
    "distances.chamfer": ("chamfer",),
    "distances.completion": ("f_score", "fidelity", "density_aware_chamfer"),
    "distances.transport": ("earth_movers_distance",),
    "distances.entropy": ("kde_entropy",),
    "distances.points": ("nearest",),
    "distances.losses": ("MMDLoss", "ChamferLoss"),
}
_MODULES: tuple[str, ...] = (
    "utils",
    "kernels",
    "sums",
    "distances",
    "clouds",
    "networks",
    "solvers",
    "gradients",
    "models",
    "diagnostics",
    "data",
)
_MODULES += ("training", "interop", "commands")
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
