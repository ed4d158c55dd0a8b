"""What settings describe: the data set, the model with fresh weights, what makes clouds partial."""

from __future__ import annotations

from typing import Any

import torch

from ddeq_fast import data, gradients, solvers
from ddeq_fast.data.dataset import Dataset
from ddeq_fast.data.partial import Clusters, Fraction
from ddeq_fast.models import Classifier, Completer
from ddeq_fast.networks import TransportMap
from ddeq_fast.training.config import Config

# Settings of some data sets, and the options of their loaders, whose defaults are theirs.
_OPTIONS = {name: name for name in ("sampling", "normalise", "coordinates", "test_share", "skip_damaged")}
_OPTIONS["data_seed"] = "seed"
_NETWORK_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def load_data(config: Config) -> Dataset:
    """The data set of these settings.

    Raises FileNotFoundError or ValueError naming a missing or damaged file, TypeError for a setting that the data set
    does not have.
    """
    given = {
        option: getattr(config, setting)
        for setting, option in _OPTIONS.items()
        if getattr(config, setting) != getattr(Config, setting)
    }
    return data.load(
        config.data, root=config.root or None, intensity=config.intensity, max_points=config.max_points or None, **given
    )


def make_removal(config: Config) -> Clusters | Fraction:
    """What makes clouds partial."""
    return Clusters(config.clusters, config.radius) if config.remove == "clusters" else Fraction(config.fraction)


def bandwidths(config: Config) -> tuple[float, ...]:
    """Those of the descriptors of input points."""
    return tuple(config.finest * 2.0**i for i in range(config.scales))


def make_model(config: Config, dim_x: int, num_classes: int) -> Classifier | Completer:
    """The model of these settings for clouds in `dim_x` dimensions, its weights drawn from torch's global generator."""
    transport = TransportMap(
        config.dim_z,
        dim_x,
        num_heads=config.num_heads,
        dim_lift=(config.dim_lift, config.dim_lift, config.dim_z),
        dim_hidden=config.dim_hidden,
        dim_final=config.dim_hidden,
        cross_layers=config.cross_layers,
        x_layers=config.x_layers,
        dropout=config.dropout,
        dim_label=config.dim_label,
        bandwidths=bandwidths(config),
        network_dtype=_NETWORK_DTYPES[config.precision],
    )
    phantom = {"steps": config.phantom_steps} if config.backward == "phantom" else {}
    parts: dict[str, Any] = {"solver": make_solver(config), "backward": gradients.make(config.backward, **phantom)}
    if config.task == "complete":
        return Completer(transport, config.growth, mass=config.mass, return_image=True, **parts)
    parts["labels"] = config.labels if config.dim_label else None
    return Classifier(transport, num_classes, num_particles=config.particles, seed=config.seed, **parts)


def make_solver(config: Config) -> solvers.Solver:
    """The solver of the equilibrium."""
    options: dict[str, Any] = {"tol": config.tol, "max_steps": config.max_steps}
    if config.cuda_graph:  # a solver of a user's own need not have it
        options["cuda_graph"] = True
    if config.solver == "flow":
        options |= {"lr": config.flow_lr, "lr_decay": (config.flow_decay, 1), "gradient": config.flow_gradient}
    return solvers.make(config.solver, **options)
