"""`ddeq-fast eval`: results of a trained model on the held-out clouds."""

from __future__ import annotations

import argparse
import json

from ddeq_fast.commands import arguments, trained
from ddeq_fast.training import evaluate
from ddeq_fast.training.metrics import table
from ddeq_fast.utils import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    arguments.add_run_folder(parser)
    arguments.add_checkpoint(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments.add_device(parser, "auto")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    found = trained.load(options.folder, options)
    metrics = evaluate(found.task, found.model, found.dataset.test, found.device)
    if options.json:
        described = {"run": str(options.folder), "checkpoint": options.checkpoint, **metrics}
        console.say(json.dumps(described), result=True)
    else:
        show(metrics)
    return 0


def show(metrics: dict) -> None:
    """Print the results of an evaluation."""
    console.say("on the held-out clouds:")
    for title, text in table(metrics):
        console.say(f"  {title:32s} {text}")
