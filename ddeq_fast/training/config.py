"""Settings of a training run: one flat dataclass, saved as JSON, each field an option of the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from ddeq_fast import data, solvers
from ddeq_fast import gradients as backwards
from ddeq_fast.data.partial import REMOVALS, Clusters, Fraction
from ddeq_fast.data.pixels import INTENSITIES
from ddeq_fast.models import Classifier, Completer
from ddeq_fast.networks import TransportMap
from ddeq_fast.utils.validation import check_choice, check_integer, check_number

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def _option(default, text: str, low=None, high=None):
    """A field with its help and, for numbers, the least value and the bound above it must stay below."""
    return field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclass(frozen=True)
class Config:
    """What a run does; everything that its results depend on besides the code and the machine."""

    task: str = _option("classify", "classify clouds, or complete them from a part")
    data: str = _option("digits", "data set")
    root: str = _option("", "folder of the data's files, where they are not found by themselves")
    intensity: str = _option("coordinate", "brightness of a pixel: third coordinate, weight of its point, or none")
    max_points: int = _option(0, "cut larger clouds to so many points, drawn at random; 0 cuts none", low=0)
    jitter: float = _option(0.1, "random turns, shears, scalings and shifts of training clouds", low=0.0)
    remove: str = _option("clusters", "what a partial cloud lacks: clusters, or a random fraction")
    clusters: int = _option(2, "clusters removed", low=1)
    radius: float = _option(0.6, "radius of a removed cluster", low=1e-12)
    fraction: float = _option(0.3, "random fraction removed", low=1e-12, high=1.0)
    growth: float = _option(1.275, "points of a completed cloud for each observed one", low=1.001)
    seeds: str = _option("random", "where new points start: random, or even: spread evenly, alike in every cloud")
    entropy: float = _option(
        0.0, "weight of the entropy of the points that complete a cloud, which spreads them", low=0.0
    )
    chamfer: float = _option(
        0.0, "weight of the Chamfer distance in the loss of completion, beside squared MMD", low=0.0
    )
    bandwidth: float = _option(1.0, "bandwidth of the density in that entropy", low=1e-12)
    dim_z: int = _option(64, "dimension of the latent particles", low=1)
    particles: int = _option(10, "latent particles", low=1)
    heads: int = _option(8, "attention heads", low=1)
    dim_lift: int = _option(16, "width of the layers before the bilinear one", low=1)
    dim_hidden: int = _option(128, "hidden width of the feed-forward layers", low=1)
    cross_layers: int = _option(1, "attention layers from the latent to the input cloud", low=1)
    dropout: float = _option(0.0, "probability of dropping a hidden unit for a whole solve", low=0.0, high=1.0)
    solver: str = _option("auto", "solver of the equilibrium")
    tol: float = _option(1e-3, "relative MMD residual at which an equilibrium is accepted", low=1e-12)
    max_steps: int = _option(60, "most steps of the solver; of auto, of its stages together", low=1)
    flow_lr: float = _option(1.0, "step size of the solver flow", low=1e-12)
    flow_decay: float = _option(1.0, "factor on that after every step", low=1e-12)
    flow_gradient: str = _option("autodiff", "of the flow: autodiff, through F too, or witness, which costs a third")
    backward: str = _option("phantom", "gradient at the equilibrium: phantom, ift or bilevel")
    precision: str = _option(
        "float32", "of F: float32, or bfloat16 on a GPU, which needs a tol of 1e-2 or so; particles keep float32"
    )
    phantom_steps: int = _option(1, "evaluations of F that the phantom gradient goes through", low=1)
    jacobian: float = _option(0.5, "weight of the penalty on the Jacobian, which keeps solves short", low=0.0)
    epochs: int = _option(40, "passes over the training clouds", low=1)
    batch_size: int = _option(64, "clouds a step", low=1)
    batching: str = _option(
        "shuffled", "order of an epoch: shuffled, or by-length: similar sizes together, less padding"
    )
    lr: float = _option(3e-3, "largest learning rate of AdamW", low=1e-12)
    schedule: str = _option("cosine", "decay of the learning rate: cosine to zero, or in steps")
    step_epochs: int = _option(2, "epochs a step of that schedule", low=1)
    step_factor: float = _option(0.2, "factor of each", low=1e-12, high=1.0)
    warmup: int = _option(50, "steps of linear growth of the learning rate", low=0)
    weight_decay: float = _option(0.01, "weight decay of AdamW", low=0.0)
    clip: float = _option(1.0, "largest norm of the gradient", low=1e-12)
    eval_every: int = _option(1, "epochs between two evaluations", low=1)
    save_every: int = _option(1, "epochs between two checkpoints", low=1)
    seed: int = _option(0, "seed of weights, order, jitter and dropout", low=0)
    threads: int = _option(1, "CPU threads; with other programs running, more can be slower", low=1)
    device: str = _option("auto", "cpu, cuda, cuda:1...; auto takes a GPU if there is one")

    def __post_init__(self):
        for item in fields(self):
            value, low, high = getattr(self, item.name), item.metadata["low"], item.metadata["high"]
            if item.type == "int":
                check_integer(item.name, value, low=low)
                if value >= 1 << 63:
                    raise ValueError(f"{item.name} must be less than 2^63, got one of {value.bit_length()} bits")
            elif item.type == "float":
                bounds = {} if high is None else {"high": high}
                object.__setattr__(self, item.name, check_number(item.name, value, low=low, closed=True, **bounds))
            elif not isinstance(value, str):
                raise TypeError(f"{item.name} must be a string, got {type(value).__name__}")
        check_choice("task", self.task, ("classify", "complete"))
        check_choice("data", self.data, data.names())
        check_choice("intensity", self.intensity, INTENSITIES)
        check_choice("remove", self.remove, REMOVALS)
        check_choice("flow_gradient", self.flow_gradient, ("autodiff", "witness"))
        check_choice("precision", self.precision, _PRECISIONS)
        check_choice("seeds", self.seeds, ("random", "even"))
        check_choice("batching", self.batching, ("shuffled", "by-length"))
        check_choice("schedule", self.schedule, ("cosine", "step"))
        check_choice("solver", self.solver, solvers.names())
        check_choice("backward", self.backward, backwards.names())
        if self.dim_z % self.heads:
            raise ValueError(f"heads must divide dim_z = {self.dim_z}, got {self.heads}")

    def to_json(self) -> str:
        """One JSON object, a line a field."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str | Path = "config") -> Config:
        """The inverse of `to_json`; raises ValueError naming `source` for anything else."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError(f"must hold an object, got {type(values).__name__}")
            unknown = sorted(set(values) - {item.name for item in fields(cls)})
            if unknown:
                raise ValueError(f"has unknown settings: {', '.join(unknown)}")
            return cls(**values)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{source}: {error}") from error

    def load(self) -> data.Dataset:
        """The data set of these settings."""
        return data.load(
            self.data, root=self.root or None, intensity=self.intensity, max_points=self.max_points or None
        )

    def removal(self) -> Clusters | Fraction:
        """What makes clouds partial."""
        return Clusters(self.clusters, self.radius) if self.remove == "clusters" else Fraction(self.fraction)

    def build(self, dim_x: int, classes: int) -> Classifier | Completer:
        """The model of these settings with fresh weights, drawn from torch's global generator."""
        transport = TransportMap(
            self.dim_z,
            dim_x,
            heads=self.heads,
            dim_lift=(self.dim_lift, self.dim_lift, self.dim_z),
            dim_hidden=self.dim_hidden,
            dim_final=self.dim_hidden,
            cross_layers=self.cross_layers,
            dropout=self.dropout,
            network_dtype=_PRECISIONS[self.precision],
        )
        steps = {"max_steps": self.max_steps}
        flow = {"lr": self.flow_lr, "lr_decay": (self.flow_decay, 1), "gradient": self.flow_gradient, **steps}
        options = flow if self.solver == "flow" else steps
        solver = solvers.make(self.solver, tol=self.tol, **options)
        phantom = {"steps": self.phantom_steps} if self.backward == "phantom" else {}
        parts = {"solver": solver, "backward": backwards.make(self.backward, **phantom)}
        if self.task == "complete":
            return Completer(transport, self.growth, return_image=True, **parts)
        return Classifier(transport, classes, num_particles=self.particles, seed=self.seed, **parts)
