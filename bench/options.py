"""Options that several commands have."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def parser(command: str, doc: str) -> argparse.ArgumentParser:
    """The parser of `python -m bench COMMAND`, whose help begins with the docstring of the command's module."""
    return argparse.ArgumentParser(
        prog=f"python -m bench {command}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_json(options: argparse.ArgumentParser) -> None:
    """--json FILE."""
    options.add_argument("--json", type=Path, metavar="FILE", help="also write machine and results to this JSON file")


def add_plot(options: argparse.ArgumentParser, what: str) -> None:
    """--plot FILE, for a picture of `what`."""
    options.add_argument("--plot", type=Path, metavar="FILE", help=f"draw {what} to this PNG")


def add_largest(options: argparse.ArgumentParser) -> None:
    """--largest POINTS."""
    options.add_argument(
        "--largest", type=int, metavar="POINTS", default=math.inf, help="leave out clouds of more points"
    )
