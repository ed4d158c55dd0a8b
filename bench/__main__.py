"""`python -m bench COMMAND`: each command is a module of this package with `main(argv)`."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from ddeq_fast.utils import threads

COMMANDS = (
    "layer",
    "study",
    "micro",
    "paired",
    "large",
    "tolerance",
    "peers",
    "nufft",
    "calibrate",
    "roofline",
    "tune",
    "compare",
    "shapes",
    "train",
    "gpu",
)


def _summary(name: str) -> str:
    """First line of a command's docstring, read without importing it: a list of commands should not load torch."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m bench COMMAND [options]\n\nBenchmarks, run from a checkout. Commands:\n")
        for name in COMMANDS:
            print(f"  {name:10s} {_summary(name)}")
        print("\n`python -m bench COMMAND --help` tells more of one.")
        return 0
    if argv[0] not in COMMANDS:
        print(f"bench: error: COMMAND must be one of {', '.join(COMMANDS)}; got {argv[0]!r}", file=sys.stderr)
        return 2
    threads.wait_briefly()
    try:
        return importlib.import_module(f"bench.{argv[0]}").main(argv[1:]) or 0
    except (OSError, ImportError) as error:  # a file or a package that is not there
        print(f"bench {argv[0]}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
