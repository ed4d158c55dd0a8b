"""Settings of a training run: one flat dataclass, saved as JSON, each field an option of the command line.

All that is said of a setting stands beside its field: help, group, choices, bounds. `Config` checks values by it, and
`ddeq-fast train --help` is made of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import Field, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ddeq_fast import data, gradients, solvers
from ddeq_fast.data.augment import ROTATIONS
from ddeq_fast.data.dataset import TEST_SHARE
from ddeq_fast.data.partial import REMOVALS
from ddeq_fast.data.pixels import INTENSITIES
from ddeq_fast.data.recipe import SAMPLINGS
from ddeq_fast.data.sampling import NORMALISATIONS
from ddeq_fast.models.completer import MASSES
from ddeq_fast.models.layer import LABELS
from ddeq_fast.training.optimizers import OPTIMIZERS
from ddeq_fast.utils.validation import check_choice, check_flag, check_integer, check_number

# Groups of settings, in the order of the help.
GROUPS = ("data", "network", "solver", "gradient", "optimisation", "run")


class Setting(NamedTuple):
    """What is declared of a field of `Config`.

    text: help, a phrase. group: one of `GROUPS`. choices: of text, or what returns them; None for any. low: least
    number. high: bound that a number must stay below.
    """

    text: str
    group: str
    choices: Collection[str] | Callable[[], Collection[str]] | None = None
    low: float | None = None
    high: float | None = None

    def options(self) -> list[str] | None:
        """The choices, those of a registry as it is now."""
        if self.choices is None:
            return None
        return list(self.choices() if callable(self.choices) else self.choices)

    def check(self, item: Field, value: object) -> int | float | str:
        """`value` of this field as it is to be kept; raises TypeError or ValueError naming the field."""
        if item.type == "bool":
            return check_flag(item.name, value)
        if item.type == "int":
            return check_integer(item.name, value, low=int(self.low or 0), high=2**63 - 1)
        if item.type == "float":
            bounds = {} if self.high is None else {"high": self.high}
            return check_number(item.name, value, low=self.low or 0.0, closed=True, **bounds)
        if not isinstance(value, str):
            raise TypeError(f"{item.name} must be a string, got {type(value).__name__}")
        options = self.options()
        return value if options is None else check_choice(item.name, value, options)


def _setting(group: str, default: Any, text: str, **declared: Any) -> Any:
    """A field with its `Setting`."""
    return field(default=default, metadata={"setting": Setting(text, group, **declared)})


def declared(item: Field) -> Setting:
    """What is declared of a field of `Config`."""
    return item.metadata["setting"]


_data, _network, _solver, _gradient, _optimisation, _run = (partial(_setting, group) for group in GROUPS)
# What a data set does unless it is told otherwise.
DEFAULT = "default"
# Where zero makes no sense, and what is next to it neither.
_POSITIVE = 1e-12


@dataclass(frozen=True)
class Config:
    """What a run does; everything that its results depend on besides the code and the machine.

    Raises TypeError or ValueError naming the setting that is of a wrong type, out of range, or none of its choices.
    """

    task: str = _data("classify", "classify clouds, or complete them from a part", choices=("classify", "complete"))
    data: str = _data("digits", "data set", choices=data.names)
    root: str = _data(
        "", "folder of the data's files, or the npz file; if not given, that of the data set in DDEQ_FAST_DATA"
    )
    intensity: str = _data(
        "coordinate",
        "what becomes of a pixel's brightness: a third coordinate, its point's weight, nothing",
        choices=INTENSITIES,
    )
    max_points: int = _data(0, "cut larger clouds to so many points, drawn at random; 0: whole clouds", low=0)
    sampling: str = _data(
        DEFAULT,
        "points of a mesh: drawn from its surface, or its vertices; default: of folder surface, of modelnet40 vertices",
        choices=(DEFAULT, *SAMPLINGS),
    )
    normalise: str = _data(
        DEFAULT,
        "mean zero and largest norm one, or the box centred and its largest coordinate one; default: of npz none, of "
        "folder and modelnet40 ball",
        choices=(DEFAULT, *NORMALISATIONS),
    )
    coordinates: int = _data(0, "take so many coordinates of a point, the first ones; 0: all", low=0)
    test_share: float = _data(
        TEST_SHARE, "share of each class that is held out, of data without a split", low=_POSITIVE, high=1.0
    )
    skip_damaged: bool = _data(False, "leave out files of a folder that cannot be read, and say how many")
    data_seed: int = _data(0, "seed of what is held out and of points that are drawn when data are read", low=0)
    jitter: float = _data(0.1, "size of random turns, shears, scalings and shifts of training clouds", low=0.0)
    rotation: str = _data(
        "none",
        "random turns of training clouds: none, about the last axis, or all, uniformly",
        choices=("none", *ROTATIONS),
    )
    scaling: float = _data(
        0.0, "training clouds are larger or smaller by a factor that is uniform in 1 +- this", low=0.0, high=1.0
    )
    noise: float = _data(0.0, "deviation of normal noise that is added to each point of training clouds", low=0.0)
    drawn_points: int = _data(
        0, "in every step train on so many points of a cloud at most, drawn anew; 0: on all", low=0
    )
    remove: str = _data(
        "clusters", "what a partial cloud lacks: all near some points, or a random share", choices=REMOVALS
    )
    clusters: int = _data(2, "clusters removed", low=1)
    radius: float = _data(0.6, "radius of a removed cluster", low=_POSITIVE)
    fraction: float = _data(0.3, "random share removed", low=_POSITIVE, high=1.0)

    dim_z: int = _network(64, "dimension of the latent particles", low=1)
    particles: int = _network(10, "latent particles of a classifier", low=1)
    dim_label: int = _network(
        0, "dimension of labels that keep particles apart, in completion that of the clouds; 0: no labels", low=0
    )
    labels: str = _network("learned", "labels of a classifier's particles, if they have any", choices=LABELS)
    num_heads: int = _network(8, "attention heads; a divisor of dim-z", low=1)
    dim_lift: int = _network(16, "width of the layers before the bilinear one", low=1)
    dim_hidden: int = _network(128, "hidden width of the feed-forward layers", low=1)
    cross_layers: int = _network(1, "attention layers from the latent to the input cloud", low=1)
    x_layers: int = _network(1, "attention layers within the input cloud, passed once a solve", low=1)
    scales: int = _network(
        0,
        "bandwidths of the potentials and fields that describe an input point beside its coordinates, each twice the "
        "last; 0: coordinates alone",
        low=0,
        high=16,
    )
    finest: float = _network(0.1, "the smallest of these bandwidths, in units of the clouds", low=_POSITIVE)
    dropout: float = _network(0.0, "probability of dropping a hidden unit for a whole solve", low=0.0, high=1.0)
    precision: str = _network(
        "float32",
        "of F; bfloat16 is for GPUs, and needs a tol of 1e-2 or so; particles keep float32",
        choices=("float32", "bfloat16"),
    )
    growth: float = _network(1.275, "points of a completed cloud for each observed one", low=1.001)
    mass: str = _network(
        "equal", "weights of the points of a completed cloud that are new: all one, or learned", choices=MASSES
    )
    start: str = _network(
        "random",
        "where new points start: at random, or spread evenly, alike in every cloud",
        choices=("random", "even"),
    )

    solver: str = _solver("auto", "solver of the equilibrium", choices=solvers.names)
    tol: float = _solver(1e-3, "relative MMD residual at which an equilibrium is accepted", low=_POSITIVE)
    max_steps: int = _solver(60, "most steps of the solver; of auto, of its stages together", low=1)
    flow_lr: float = _solver(1.0, "step size of the solver flow", low=_POSITIVE)
    flow_decay: float = _solver(1.0, "factor on that after every step", low=_POSITIVE)
    flow_gradient: str = _solver(
        "autodiff",
        "gradient of the flow: through F too, or by the witness function, which costs a third",
        choices=("autodiff", "witness"),
    )
    cuda_graph: bool = _solver(
        False, "on a GPU, record the solver's step in a CUDA graph, which shortens solves of small clouds of one size"
    )

    backward: str = _gradient("phantom", "gradient at the equilibrium", choices=gradients.names)
    phantom_steps: int = _gradient(1, "evaluations of F that the phantom gradient goes through", low=1)
    jacobian: float = _gradient(0.5, "weight of the penalty on the Jacobian of F, which keeps solves short", low=0.0)
    jacobian_direction: str = _gradient(
        "random",
        "direction in which that is measured: a random one, or the residual, in which F contracts least",
        choices=("random", "residual"),
    )

    class_weights: str = _optimisation(
        "none",
        "weights of classes in the loss of classification: none, or balanced, as if all were equally frequent",
        choices=("none", "balanced"),
    )
    chamfer: float = _optimisation(
        0.0, "weight of the Chamfer distance in the loss of completion, beside squared MMD", low=0.0
    )
    entropy: float = _optimisation(
        0.0, "weight of the entropy of the points that complete a cloud, which spreads them", low=0.0
    )
    bandwidth: float = _optimisation(1.0, "bandwidth of the density in that entropy", low=_POSITIVE)
    epochs: int = _optimisation(40, "passes over the training clouds", low=1)
    batch_size: int = _optimisation(64, "clouds a step", low=1)
    batching: str = _optimisation(
        "shuffled",
        "order of an epoch: at random, or similar sizes together, which pads less",
        choices=("shuffled", "by-length"),
    )
    optimizer: str = _optimisation("adamw", "AdamW, or Muon for matrices and AdamW for all else", choices=OPTIMIZERS)
    lr: float = _optimisation(3e-3, "largest learning rate", low=_POSITIVE)
    schedule: str = _optimisation(
        "cosine", "decay of the learning rate: half a cosine to zero, or in steps", choices=("cosine", "step")
    )
    step_epochs: int = _optimisation(2, "epochs a step of that schedule", low=1)
    step_factor: float = _optimisation(0.2, "factor of each", low=_POSITIVE, high=1.0)
    warmup: int = _optimisation(50, "steps of linear growth of the learning rate", low=0)
    weight_decay: float = _optimisation(0.01, "weight decay", low=0.0)
    clip: float = _optimisation(1.0, "largest norm of the gradient", low=_POSITIVE)

    eval_every: int = _run(1, "epochs between two evaluations", low=1)
    save_every: int = _run(1, "epochs between two checkpoints", low=1)
    seed: int = _run(0, "seed of weights, order, jitter and dropout", low=0)
    threads: int = _run(1, "CPU threads; with other programs running, more can be slower", low=1)
    device: str = _run("auto", "cpu, cuda, cuda:1...; auto takes a GPU if there is one")

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, declared(item).check(item, getattr(self, item.name)))
        if self.dim_z % self.num_heads:
            raise ValueError(f"num_heads must divide dim_z = {self.dim_z}, got {self.num_heads}")

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
