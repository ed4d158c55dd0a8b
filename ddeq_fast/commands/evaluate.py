"""`ddeq-fast eval`: results of a trained model on the held-out clouds."""

from __future__ import annotations

import argparse
import json

import torch

from ddeq_fast.commands import arguments
from ddeq_fast.training import evaluate, load_data, load_model, make_task, read_config
from ddeq_fast.training.metrics import table
from ddeq_fast.utils import console
from ddeq_fast.utils.validation import choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    arguments.add_run_folder(parser)
    parser.add_argument(
        "--checkpoint", choices=("last", "best"), default="last", help="which weights (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments.add_device(parser, "auto")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    config = read_config(options.folder)
    torch.set_num_threads(config.threads)
    device = choose_device(options.device)
    dataset = load_data(config)
    model = load_model(options.folder, options.checkpoint, dataset).to(device)
    metrics = evaluate(make_task(config), model, dataset.test, device)
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
