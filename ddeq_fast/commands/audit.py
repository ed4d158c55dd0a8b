"""`ddeq-fast audit`: whether the equilibria of a trained model matter, and are distributions."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ddeq_fast.clouds import PointClouds
from ddeq_fast.commands import arguments, trained
from ddeq_fast.diagnostics import Audit, audit, pictures
from ddeq_fast.training.run import AUDIT_FILE, AUDIT_PICTURE
from ddeq_fast.utils import console, tree
from ddeq_fast.utils.files import write_atomically
from ddeq_fast.utils.validation import check_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Are the equilibria of a trained model equilibria, are they distributions, and do they\n"
        "matter? Measured on held-out clouds: residuals, spread of the particles, one particle in\n"
        "place of all, fewer steps and none, other starts, the Jacobian, gradients. The run folder\n"
        f"receives {AUDIT_FILE} and {AUDIT_PICTURE}; its page (gallery) shows them."
    )
    arguments.add_run_folder(parser)
    parser.add_argument(
        "--samples", type=int, default=64, metavar="N", help="held-out clouds, evenly chosen (default: %(default)s)"
    )
    arguments.add_checkpoint(parser)
    parser.add_argument(
        "--starts", type=int, default=3, metavar="N", help="further starts of a solve (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (default: %(default)s)")
    arguments.add_json(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: the run folder)")
    arguments.add_device(parser, "auto")


def run(options: argparse.Namespace) -> int:
    check_integer("samples", options.samples)
    out = options.folder if options.out is None else options.out
    _, dataset, task, model, device = trained.load(options.folder, options)
    out.mkdir(parents=True, exist_ok=True)
    count = min(options.samples, len(dataset.test))
    batch = dataset.test.batch(torch.arange(count) * len(dataset.test) // count)
    inputs = tree.apply(lambda t: t.to(device), task.inputs(batch, None))
    whole: PointClouds | None = getattr(inputs, "whole", None)
    drawn = {} if whole is None else {"noise": inputs.noise}
    targets = inputs.labels if whole is None else whole
    found = audit(model, *inputs.clouds, targets=targets, starts=options.starts, seed=options.seed, **drawn)
    write_atomically(out / AUDIT_FILE, found.to_json().encode())
    if options.json:
        console.say(found.to_json().rstrip(), result=True)
    else:
        console.say(str(found))
    wrote = _draw(found, out / AUDIT_PICTURE)
    if not options.json:
        console.say(f"wrote {out / AUDIT_FILE}{wrote}")
    return 0


def _draw(found: Audit, path: Path) -> str:
    """The picture; that it cannot be drawn is no error, for the numbers are there."""
    try:
        pictures.draw(found, path)
    except Exception as error:
        console.say(f"no picture {path}: {type(error).__name__}: {error}", error=True)
        return ""
    return f" and {path}"
