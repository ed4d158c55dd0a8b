"""The command `ddeq-fast`. Errors of the user's are one line and exit status 2.

A command is a module with `add_arguments(parser)` and `run(options) -> exit status`; only that of the command asked for
is imported, so that help comes at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from ddeq_fast import __version__
from ddeq_fast.utils import console, threads

# The module in this folder, and a line of help.
COMMANDS = {
    "train": ("train", "train a classifier or a completer of point clouds"),
    "eval": ("evaluate", "results of a trained model on held-out clouds"),
    "audit": ("audit", "whether the equilibria of a trained model matter, and are distributions"),
    "complete": ("complete", "complete a cloud of your own with a trained model"),
    "gallery": ("gallery", "a page (HTML) of a run: results, curves, pictures, settings"),
    "flow": ("flow", "move random particles onto a target cloud"),
    "explain": ("explain", "which backend takes clouds of given sizes, and why"),
    "doctor": ("doctor", "versions, devices, and which backends work"),
    "completion": ("completion", "what a shell needs to complete commands and options"),
}


def make_parser(asked: str | None = None, *, everything: bool = False) -> argparse.ArgumentParser:
    """All commands; that asked for, or every one, with its options, and the function that runs it as `run`."""
    parser = argparse.ArgumentParser(
        prog="ddeq-fast",
        description="Distributional deep equilibrium models on fused kernel sums.",
        epilog="ddeq-fast COMMAND --help lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"ddeq-fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if everything or name == asked:
            found = importlib.import_module(f"ddeq_fast.commands.{module}")
            found.add_arguments(command)
            command.set_defaults(run=found.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Raises SystemExit after help (0) and for wrong usage (2), as argparse does.
    """
    console.open_streams()
    threads.wait_briefly()
    argv = sys.argv[1:] if argv is None else argv
    try:
        asked = next((word for word in argv if not word.startswith("-")), None)
        options = make_parser(asked).parse_args(argv)
        return options.run(options)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        console.say(f"ddeq-fast: error: {error}{_cure(error)}", error=True)
        return 2
    except KeyboardInterrupt:
        console.say("ddeq-fast: interrupted", error=True)
        return 130


def _cure(error: Exception) -> str:
    """What to do where a package is missing that nothing works without; others say so themselves."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "numpy"):
        return f": pip install {error.name}; see ddeq-fast doctor"
    return ""


if __name__ == "__main__":
    sys.exit(main())
