"""`ddeq-fast eval`: results of a trained model on the held-out clouds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from ddeq_fast.commands import arguments, trained
from ddeq_fast.training import measure_split
from ddeq_fast.training.metrics import BALANCED, METRICS, Groups, by_group, combine, table
from ddeq_fast.utils import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    arguments.add_run_folder(parser)
    arguments.add_checkpoint(parser)
    arguments.add_json(parser)
    arguments.add_device(parser, "auto")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    found = trained.load(options.folder, options)
    names = found.dataset.names
    parts = measure_split(found.task, found.model, found.dataset.test, found.device)
    metrics, groups = combine(parts), by_group(parts, BALANCED)
    classes = _by_name(groups, names) if groups and names else {}
    if options.json:
        described = {"run": str(options.folder), "checkpoint": options.checkpoint, **metrics}
        console.say(json.dumps(described | ({"classes": classes} if classes else {})), result=True)
    else:
        show(metrics)
        _show_classes(classes)
    return 0


def _by_name(groups: Groups, names: Sequence[str]) -> dict[str, dict]:
    """accuracy and number of held-out clouds of each class; no accuracy where there are none."""
    found = {}
    for label, name in enumerate(names):
        hits, clouds = groups.get(label, (0.0, 0))
        found[name] = {"accuracy": hits / clouds if clouds else None, "clouds": clouds}
    return found


def _show_classes(classes: Mapping[str, Mapping]) -> None:
    """Print a line a class."""
    if classes:
        console.say("accuracy of the classes, and how many of their clouds are held out:")
    width = max(map(len, classes), default=0)
    for name, found in classes.items():
        text = "" if found["accuracy"] is None else METRICS["accuracy"].text(found["accuracy"])
        console.say(f"  {name:{width}s} {text:>8s} {found['clouds']:6d}")


def show(metrics: dict) -> None:
    """Print the results of an evaluation."""
    console.say("on the held-out clouds:")
    for title, text in table(metrics):
        console.say(f"  {title:32s} {text}")
