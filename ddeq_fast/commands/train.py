"""`ddeq-fast train`: a run from its settings, or on from its last checkpoint."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import fields
from pathlib import Path

import torch

from ddeq_fast.commands import arguments
from ddeq_fast.commands.evaluate import show
from ddeq_fast.training.config import GROUPS, Config, declared
from ddeq_fast.training.loop import Interrupted, Trainer
from ddeq_fast.training.presets import PRESETS
from ddeq_fast.training.run import read_config
from ddeq_fast.utils import console, drawing

_TYPES = {"int": int, "float": float, "str": str}
_METAVARS = {"int": "N", "float": "X", "str": "NAME"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Train a classifier or a completer of point clouds. The run folder receives\n"
        "config.json, metrics.jsonl, checkpoints and pictures. Ctrl-C saves; --resume\n"
        "continues as if nothing had happened. Several processes share every batch:\n\n"
        "  torchrun --nproc-per-node 2 -- $(which ddeq-fast) train ..."
    )
    parser.usage = "%(prog)s [--preset NAME] [--run FOLDER] [--resume] [--SETTING VALUE ...]"
    parser.epilog = "\n".join(["presets:", *(_preset(name) for name in PRESETS)])
    parser.add_argument(
        "--preset", choices=PRESETS, metavar="NAME", help="settings by name, see below; others override"
    )
    parser.add_argument(
        "--run", type=Path, dest="folder", metavar="FOLDER", help="run folder (default: runs/PRESET or runs/DATA)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run of that folder, with its own settings")
    arguments.add_quiet(parser)
    arguments.add_json(parser)
    parser.add_argument(
        "--tensorboard", action="store_true", help="write metrics for TensorBoard to the run folder too"
    )
    groups = {name: parser.add_argument_group(f"{name} settings") for name in GROUPS}
    for item in fields(Config):
        setting = declared(item)
        if item.type == "bool":
            groups[setting.group].add_argument(
                _option(item.name),
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=setting.text.replace("%", "%%"),
            )
            continue
        choices, default = setting.options(), "" if item.default == "" else f" (default: {item.default})"
        groups[setting.group].add_argument(
            _option(item.name),
            type=_TYPES[str(item.type)],
            default=argparse.SUPPRESS,
            metavar=_METAVARS[str(item.type)] if choices is None else f"{{{','.join(choices)}}}",
            help=(setting.text + default).replace("%", "%%"),
        )


def _preset(name: str) -> str:
    """Name and text of a preset."""
    indent = 4 + max(map(len, PRESETS))
    return textwrap.fill(f"  {name:{indent - 2}s}{PRESETS[name].text}", 80, subsequent_indent=" " * indent)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    given = {item.name: getattr(options, item.name) for item in fields(Config) if item.name in options}
    settings = given if options.preset is None else {**PRESETS[options.preset].settings, **given}
    folder = options.folder or Path("runs", options.preset or settings.get("data", Config.data))
    if options.resume:
        _check_resumed(folder, given, settings)
    trainer = Trainer.resume(folder) if options.resume else Trainer(Config(**settings), folder)
    torch.set_num_threads(trainer.config.threads)
    main = trainer.processes.main
    if main and not options.json:
        console.say(_summary(trainer))
    try:
        result = trainer.fit(progress=not options.quiet, tensorboard=options.tensorboard)
    except Interrupted as stop:
        if main:
            console.say(f"ddeq-fast: {stop}; continue with --resume", error=True)
        return 130
    if main and options.json:
        console.say(json.dumps(_told(trainer, result)), result=True)
    elif main:
        console.say(f"trained {trainer.config.epochs} epochs in {trainer.seconds:.0f} s")
        show(result)
    if main:
        draw(trainer, quiet=options.json)
    return 0


def _check_resumed(folder: Path, given: dict, settings: dict) -> None:
    """Raises ValueError for settings beside --resume: those that find the folder must not contradict the run in it."""
    changes = [_option(name) for name in given if name != "data"]
    if changes:
        raise ValueError(f"{', '.join(changes)} cannot be changed by --resume: a run keeps its settings")
    config = read_config(folder)
    for name in ("data", "task"):
        if name in settings and settings[name] != (there := getattr(config, name)):
            raise ValueError(f"--resume: the run in {folder} has {name} {there}, not {settings[name]}")


def _summary(trainer: Trainer) -> str:
    """What is about to be trained."""
    dataset, parameters = trainer.dataset, _parameters(trainer)
    return (
        f"{dataset.name}: {len(dataset.train)} clouds, {len(dataset.test)} held out\n"
        f"model: {parameters:,} parameters on {trainer.device}; run folder {trainer.folder}"
    )


def _parameters(trainer: Trainer) -> int:
    return sum(parameter.numel() for parameter in trainer.model.parameters())


def _told(trainer: Trainer, result: dict) -> dict:
    """The figures of a finished run, for JSON; those of its results have the names that `eval` gives them."""
    dataset, config = trainer.dataset, trainer.config
    return {
        "run": str(trainer.folder),
        "data": dataset.name,
        "clouds": len(dataset.train),
        "held_out": len(dataset.test),
        "parameters": _parameters(trainer),
        "device": str(trainer.device),
        "epochs": config.epochs,
        "seconds": trainer.seconds,
        **result,
    }


def draw(trainer: Trainer, quiet: bool = False) -> None:
    """Pictures of a finished run, named on the console unless `quiet`.

    Nothing that goes wrong with them is an error: the run is done, and saved.
    """
    drawn = []
    try:
        drawing.load_matplotlib()
        from ddeq_fast.training.pictures import pictures

        for path, picture in pictures(trainer).items():
            try:
                picture()
                drawn.append(str(path))
            except Exception as error:
                console.say(f"no picture {path}: {type(error).__name__}: {error}", error=True)
    except Exception as error:
        console.say(f"no pictures: {error}", error=True)
    if drawn and not quiet:
        console.say(f"pictures: {', '.join(drawn)}")
