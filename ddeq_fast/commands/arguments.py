"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # doctor runs without torch
    from ddeq_fast.sums.radial import RadialKernel


def add_run_folder(parser: argparse._ActionsContainer) -> None:
    """The folder of a run, as an argument."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="run folder, such as runs/digits")


def add_device(parser: argparse._ActionsContainer, default: str) -> None:
    """--device, any that torch knows."""
    text = "cpu, cuda, cuda:1..." + ("; auto takes a GPU if there is one" if default == "auto" else "")
    parser.add_argument("--device", default=default, metavar="NAME", help=f"{text} (default: %(default)s)")


def add_checkpoint(parser: argparse._ActionsContainer) -> None:
    """--checkpoint of a run."""
    parser.add_argument(
        "--checkpoint", choices=("last", "best"), default="last", help="which weights (default: %(default)s)"
    )


def add_json(parser: argparse._ActionsContainer) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_quiet(parser: argparse._ActionsContainer) -> None:
    """--quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_kernel(parser: argparse._ActionsContainer) -> None:
    """--kernel, as text."""
    parser.add_argument(
        "--kernel",
        type=_kernel,
        default="riesz:1",
        metavar="TEXT",
        help="such as riesz:1, gaussian:0.5, riesz:1+0.5*gaussian:2 (default: %(default)s)",
    )


def _kernel(text: str) -> RadialKernel:
    from ddeq_fast.sums.text import parse

    try:
        return parse(text)
    except ValueError as error:  # argparse hides the message of any other
        raise argparse.ArgumentTypeError(str(error)) from error


def check_output(option: str, path: Path, endings: Collection[str], source: Path, what: str) -> None:
    """Before the work, not after: raises if `path`, of that option, cannot be written, or is the input `source`.

    Raises ValueError, FileNotFoundError, IsADirectoryError naming the option; `what` is a word for the input.
    """
    if path.suffix.lower() not in endings:
        raise ValueError(f"--{option} must end in {'one of ' * (len(endings) > 1)}{', '.join(endings)}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for --{option} {path.name}")
    if path.is_dir():
        raise IsADirectoryError(f"--{option} {path} is a folder")
    if path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"--{option} {path} is the {what}")
