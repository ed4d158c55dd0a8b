"""`ddeq-fast gallery`: a page of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from ddeq_fast.commands import arguments
from ddeq_fast.training import gallery
from ddeq_fast.utils import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    arguments.add_run_folder(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write it (default: FOLDER/gallery)")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    console.say(str(gallery.write(options.folder, options.out)))
    return 0
