"""`ddeq-fast completion`: what a shell needs to complete commands, options and their values."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ddeq_fast.utils import console
from ddeq_fast.utils.optional import require

SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Print a script with which a shell completes commands, options and their values. To keep it:\n\n"
        "  bash: ddeq-fast completion bash > ~/.local/share/bash-completion/completions/ddeq-fast\n"
        "  zsh:  ddeq-fast completion zsh > FOLDER/_ddeq-fast, FOLDER one of $fpath\n"
        "  tcsh: ddeq-fast completion tcsh >> ~/.tcshrc\n\n"
        "It holds for this version, and is made by the package shtab."
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from ddeq_fast.commands.main import make_parser

    shtab = require("shtab", "completion")
    parser = make_parser(everything=True)
    for action in _actions(parser):
        if action.type is Path and not action.choices:
            action.complete = shtab.DIRECTORY if action.metavar == "FOLDER" else shtab.FILE  # type: ignore[attr-defined]
    console.say(shtab.complete(parser, options.shell), result=True)
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments, those of commands too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
