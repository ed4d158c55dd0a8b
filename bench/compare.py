"""Training DDEQ and other networks on the same clouds by the same loop: accuracy, parameters, time.

Every model is trained with the settings of the DDEQ preset of the task, or of the run given by --ddeq: clouds,
augmentation, epochs, batches, optimizer, schedule and loss; and it is so wide that it has about as many parameters. Its
own are the learning rate, found by a short search, and that a model without equilibrium has no penalty on the Jacobian.
Models of neighbourhoods, which are others in a denser cloud, are trained and tested on clouds of as many points as are
drawn of the others in every step, the same in all of them; these are tested on whole clouds.
Results are those after the last epoch, on held-out clouds. Times are those of the training steps, without evaluation.
With --seeds every model is trained that often, and the table has means and standard deviations. Where classes are of
very different sizes it has balanced accuracy too, and of completion in three dimensions the F-score and the earth
mover's distance, of 512 points that stand for equal shares of a cloud's weight.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import NamedTuple

import torch
from torch import nn

from bench import completed, machine, options
from bench.baselines.dgcnn import DGCNN
from bench.baselines.pcn import PCN
from bench.baselines.point_mlp import PointMLP
from bench.baselines.point_transformer import PointTransformer
from bench.baselines.pointnet import PointNet
from bench.baselines.pointr import PoinTr
from bench.report import write_json
from ddeq_fast import data as data_sets
from ddeq_fast import training
from ddeq_fast.data import Dataset
from ddeq_fast.data.augment import ROTATIONS
from ddeq_fast.training.build import bandwidths
from ddeq_fast.training.config import Config
from ddeq_fast.training.presets import PRESETS
from ddeq_fast.utils.validation import check_choice, check_integer, choose_device

# What DDEQ is trained with where no run is given; completion of digits has the settings of that of MNIST. All other
# data have those of shapes.
PRESET = {
    "classify": {"digits": "digits", "mnist": "mnist-classify"},
    "complete": {"digits": "mnist-complete", "mnist": "mnist-complete"},
}
SHAPES = {"classify": "shapes-classify", "complete": "shapes-complete"}
# Classes are unbalanced where the largest has so many times the clouds of the smallest.
UNBALANCED = 2


class Model(NamedTuple):
    """text: its name in tables; lr: largest learning rate; build: from settings, data and a width; fixed: trained and
    tested on clouds of as many points as others draw in a step; described: sees the descriptors of DDEQ's input."""

    text: str
    lr: float
    build: Callable[[Config, Dataset, int], nn.Module]
    fixed: bool = False
    described: bool = False

    def settings(self, config: Config) -> Config:
        """Those it is trained with in the place of DDEQ's."""
        own = replace(config, lr=self.lr, jacobian=0.0)
        if not (self.fixed and config.drawn_points):
            return own
        most = min(config.drawn_points, config.max_points or config.drawn_points)
        return replace(own, drawn_points=0, max_points=most)


def _classifier(kind: type[nn.Module]) -> Callable[[Config, Dataset, int], nn.Module]:
    return lambda config, data, width: kind(data.dim, data.classes, width)


def _described(config: Config, data: Dataset, width: int) -> nn.Module:
    return PointNet(data.dim, data.classes, width, bandwidths=bandwidths(config))


def _most(config: Config, data: Dataset) -> int:
    """Points of the largest completed cloud: of the largest there is, of which next to nothing was removed."""
    return int(config.growth * max(map(len, data.train.points)))


def _pcn(keep: bool) -> Callable[[Config, Dataset, int], PCN]:
    return lambda config, data, width: PCN(data.dim, _most(config, data), config.growth, keep, width)


def _pointr(config: Config, data: Dataset, width: int) -> PoinTr:
    return PoinTr(data.dim, _most(config, data), config.growth, width)


# Learning rates are the better of 3e-3 and 1e-2 after one to three epochs on MNIST, of completion with Muon, and of
# DGCNN and PointMLP after ten, of PoinTr after eight, on shapes split off the training part.
MODELS = {
    "classify": {
        "pointnet": Model("PointNet", 3e-3, _classifier(PointNet)),
        "pointnet-described": Model("PointNet, with DDEQ's descriptors", 3e-3, _described, described=True),
        "transformer": Model("point transformer", 1e-2, _classifier(PointTransformer), fixed=True),
        "dgcnn": Model("DGCNN", 1e-2, _classifier(DGCNN), fixed=True),
        "pointmlp": Model("PointMLP", 1e-2, _classifier(PointMLP), fixed=True),
    },
    "complete": {
        "pcn": Model("PCN, which makes the whole cloud", 1e-2, _pcn(False)),
        "pcn-keep": Model("PCN, keeping the partial cloud", 1e-2, _pcn(True)),
        "pointr": Model("PoinTr", 1e-2, _pointr),
    },
}


class Column(NamedTuple):
    """A number of each run, by its name there and in the table; form: of its value."""

    title: str
    name: str
    form: str

    @property
    def partial(self) -> str:
        """The name of that of the partial clouds, if there is one."""
        return f"partial_{self.name}"

    def text(self, runs: list[dict]) -> str:
        """A cell: mean and deviation, and how much of the partial clouds' own it is; nothing of what runs have not."""
        if self.name not in runs[0]:
            return ""
        text = _over(runs, self.name, self.form)
        if self.partial not in runs[0]:
            return text
        return f"{text} ({mean(row[self.name] / row[self.partial] for row in runs):.2f})"


def names(config: Config) -> list[str]:
    """Models that are compared unless some are asked for; without descriptors none that would see them."""
    return ["ddeq", *(name for name, model in MODELS[config.task].items() if config.scales or not model.described)]


def size(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def width(model: Model, config: Config, data: Dataset) -> int:
    """The width with which a model has about as many parameters as the DDEQ of these settings."""
    wanted = size(training.make_model(config, data.dim, data.classes))

    def parameters(candidate: int) -> int:
        with torch.device("meta"):
            return size(model.build(config, data, candidate))

    widths = range(2, 513)
    place = bisect_left(widths, wanted, key=parameters)
    return min(widths[max(place - 1, 0) : place + 1], key=lambda candidate: abs(parameters(candidate) - wanted))


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("compare", __doc__)
    default = {"default": argparse.SUPPRESS}  # so that what was not asked for stays as the preset or the run has it
    parser.add_argument("--task", choices=list(MODELS), help="default: classify", **default)
    parser.add_argument("--data", choices=data_sets.names(), help="default: digits", **default)
    parser.add_argument("--root", help="folder of the data's files, or the npz file", **default)
    parser.add_argument("--epochs", type=int, help="passes over the training clouds, for every model", **default)
    parser.add_argument("--max-points", type=int, help="cut larger clouds to so many points, 0 for none", **default)
    text = "points of a training cloud, drawn anew in every step, 0 for all"
    parser.add_argument("--drawn-points", type=int, help=text, **default)
    text = "random turns of training clouds: none, about the last axis, or all"
    parser.add_argument("--rotation", choices=("none", *ROTATIONS), help=text, **default)
    parser.add_argument("--seed", type=int, help="of weights, order and augmentation; the first one", **default)
    parser.add_argument("--seeds", type=int, default=1, help="so many seeds, each one more than the last (default: 1)")
    parser.add_argument("--threads", type=int, help="CPU threads", **default)
    parser.add_argument("--device", help="cpu, cuda...", **default)
    known = "; ".join(f"{task}: ddeq, {', '.join(models)}" for task, models in MODELS.items())
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"{known} (default: those of the task)")
    text = "settings of DDEQ (default: those for the data; of other data than digits, shapes-classify or -complete)"
    parser.add_argument("--preset", choices=list(PRESETS), metavar="NAME", help=text)
    text = "take settings and DDEQ's results from this run folder, also the times, on whatever machine it was trained"
    parser.add_argument("--ddeq", type=Path, metavar="RUN", help=text)
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="keep the runs there; continues those begun")
    options.add_json(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def settings(asked: dict, run: Path | None, preset: str | None = None) -> Config:
    """Those of a run folder, of a preset, or of the one for the task and data asked for, with the changes asked for.

    Raises ValueError for a preset of another task, and for a change that would make the comparison with the run
    unequal.
    """
    if run is None:
        if preset is None:
            asked = {"task": "classify", "data": "digits", **asked}
            preset = PRESET[asked["task"]].get(asked["data"], SHAPES[asked["task"]])
        given = Config(**PRESETS[preset].settings)
        if asked.get("task", given.task) != given.task:
            raise ValueError(f"--task must be {given.task} with --preset {preset}, got {asked['task']}")
        return replace(given, **asked)
    if preset is not None:
        raise ValueError(f"--preset must not be given where --ddeq gives a run, got {preset}")
    config = training.read_config(run)
    for name, value in asked.items():
        if name not in ("root", "threads", "device") and value != getattr(config, name):
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} {value}: the models must be trained as {run} was, {getattr(config, name)}")
    return replace(config, **asked)


def results(folder: Path, model: nn.Module, config: Config, data: Dataset) -> dict:
    """Parameters of a trained model and what its run's metrics tell; raises ValueError if the run has not come to its
    end."""
    times, before, test = [], 0.0, {"step": 0}
    for entry in training.read_metrics(folder):
        if entry["split"] == "train":
            times.append(entry["seconds"] - before)
        else:
            test = entry
        before = entry["seconds"]
    steps = config.epochs * math.ceil(len(data.train) / config.batch_size)
    if test["step"] != steps:
        raise ValueError(f"{folder} has no result after {steps} steps, its last is after {test['step']}")
    wanted = [name for column in columns(config, data) for name in (column.name, column.partial)]
    return {
        "parameters": size(model),
        "lr": config.lr,
        "seed": config.seed,
        "train_seconds": sum(times),
        "step_seconds": median(times),
        **{name: test[name] for name in (*wanted, "evaluations") if name in test},
        **(completed.scores(model, config, data) if set(completed.NAMES) & set(wanted) else {}),
    }


def train(name: str, config: Config, data: Dataset, folder: Path, progress: bool = True) -> dict:
    """Train a model of the task, by name, in a folder, or continue the run there; returns its row of the table.

    Raises ValueError if the folder holds a run with other settings.
    """
    if name == "ddeq":
        text, build = "DDEQ", None
    else:
        model = MODELS[config.task][name]
        text, build = model.text, partial(model.build, width=width(model, config, data))
        given, config = config, model.settings(config)
        if config.max_points != given.max_points:
            data = training.load_data(config)
    if (folder / training.CONFIG_FILE).exists():
        if training.read_config(folder) != config:
            raise ValueError(f"{folder} holds a run with other settings: choose another folder")
        trainer = training.Trainer.resume(folder, data, build)
    else:
        trainer = training.Trainer(config, folder, data, build)
    trainer.fit(progress=progress)
    return {"model": text, **results(folder, trainer.model, config, data)}


def report(rows: list[dict], config: Config, data: Dataset) -> str:
    """The rows as a Markdown table; what is measured of completion with its ratio to the partial clouds' own."""
    clouds = f"{len(data.train):,} clouds, {len(data.test):,} held out"
    cut = f" of at most {config.max_points} points" if config.max_points else ""
    seeds = len({row["seed"] for row in rows})
    spread = f"; mean and standard deviation of {seeds} seeds" if seeds > 1 else ""
    epochs = f"{config.epochs} epochs, batches of {config.batch_size}"
    lines = [f"{config.task} {data.name}: {clouds}{cut}; {epochs}{spread}", ""]
    shown = columns(config, data)
    lines.append(f"| model | parameters | {' | '.join(column.title for column in shown)} | training | a step |")
    lines.append("|---" * (len(shown) + 4) + "|")
    if config.task == "complete":
        cells = [column.form.format(own) if (own := rows[0].get(column.partial)) else "" for column in shown]
        lines.append(f"| the partial cloud itself | | {' | '.join(cells)} | | |")
    for model in dict.fromkeys(row["model"] for row in rows):
        runs = [row for row in rows if row["model"] == model]
        cells = [column.text(runs) for column in shown]
        cells += [
            _over(runs, "train_seconds", "{:.0f} s"),
            f"{1e3 * median(row['step_seconds'] for row in runs):.0f} ms",
        ]
        lines.append(f"| {model} | {runs[0]['parameters']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def unbalanced(data: Dataset) -> bool:
    """Whether classes of held-out clouds differ so much in size that overall accuracy is that of the large ones."""
    counts = data.test.labels.bincount(minlength=data.classes)
    counts = counts[counts > 0]
    return int(counts.max()) >= UNBALANCED * int(counts.min())


def columns(config: Config, data: Dataset) -> list[Column]:
    """What the table says of a model."""
    if config.task == "classify":
        balanced = [Column("balanced accuracy", "balanced_accuracy", "{:.2%}")] if unbalanced(data) else []
        return [Column("accuracy", "accuracy", "{:.2%}"), *balanced]
    score = [Column("F-score", "f_score", "{:.3f}"), Column("EMD", "emd", "{:.4f}")] if data.dim == 3 else []
    distances = [Column("Chamfer distance", "chamfer", "{:.4f}"), Column("squared MMD", "mmd", "{:.5f}")]
    return [*distances, *score, Column("worst residual", "worst_residual", "{:.1e}")]


def _over(runs: list[dict], name: str, form: str) -> str:
    """A number over the runs of a model, with its deviation if there are several."""
    values = [row[name] for row in runs]
    text = form.format(mean(values))
    return text if len(values) == 1 else f"{text} ± {form.format(stdev(values))}"


def compare(names: list[str], config: Config, args: argparse.Namespace) -> None:
    """Train the models, print the table, write the JSON file after every model."""
    torch.set_num_threads(config.threads)
    described, data = machine.describe(), training.load_data(config)
    rows: list[dict] = []
    print(machine.line(described), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, seed in ((name, config.seed + i) for name in names for i in range(args.seeds)):
            if name == "ddeq" and args.ddeq is not None:
                model = training.load_model(args.ddeq, "last", data).to(choose_device(config.device))
                rows.append({"model": "DDEQ", **results(args.ddeq, model, config, data)})
            else:
                folder = (args.runs or Path(scratch)) / (name if args.seeds == 1 else f"{name}-{seed}")
                print(f"training {folder.name}", file=sys.stderr)
                rows.append(train(name, replace(config, seed=seed), data, folder, not args.quiet))
            if args.json:
                kept = asdict(config) | {"root": ""}  # a folder of one machine is no result
                write_json(args.json, {"machine": described, "settings": kept, "rows": rows})
    print(report(rows, config, data))


def main(argv: list[str]) -> int:
    """Run the comparison; errors of the user's are one line and exit status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    own = ("preset", "models", "ddeq", "runs", "json", "quiet", "seeds")
    try:
        if check_integer("--seeds", args.seeds) > 1 and args.ddeq is not None:
            raise ValueError(f"--seeds must be 1 where --ddeq gives a run, got {args.seeds}")
        asked = {name: value for name, value in vars(args).items() if name not in own}
        config = settings(asked, args.ddeq, args.preset)
        chosen = list(dict.fromkeys(args.models or names(config)))
        for name in chosen:
            check_choice("--models", name, ("ddeq", *MODELS[config.task]))
        compare(chosen, config, args)
    except training.Interrupted as stop:
        print(f"bench compare: {stop}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0
