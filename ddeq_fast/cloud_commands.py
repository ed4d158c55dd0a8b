"""The commands `ddeq-fast explain` and `ddeq-fast flow`: their options, and what they run."""

from __future__ import annotations

import argparse


def add(commands, command: str | None) -> None:
    """Add both to the subparsers `commands`; their options need torch and are added only for `command`."""
    explain = commands.add_parser(
        "explain",
        help="which backend sums clouds of given sizes, and what each would cost",
        description="Predicted time and memory of every backend for potential and field, and which one 'auto' takes.",
    )
    if command == "explain":
        _add_sizes(explain)


def _add_sizes(parser) -> None:
    from ddeq_fast.explain import DTYPES

    parser.add_argument("--n", type=int, required=True, help="sources of a cloud")
    parser.add_argument("--d", type=int, required=True, help="dimension of the points")
    parser.add_argument("--m", type=int, help="targets of a cloud (default: as many as sources)")
    parser.add_argument("--batch", type=int, default=1, help="clouds (default: %(default)s)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu, cuda... (default: %(default)s)")
    _add_kernel(parser)


def _add_kernel(parser) -> None:
    parser.add_argument(
        "--kernel",
        type=_kernel,
        default="riesz:1",
        metavar="KERNEL",
        help="such as riesz:1, gaussian:0.5, riesz:1+0.5*gaussian:2 (default: %(default)s)",
    )


def _kernel(text: str):
    from ddeq_fast.kernel_text import parse_kernel

    try:
        return parse_kernel(text)
    except ValueError as error:  # argparse hides the message of any other
        raise argparse.ArgumentTypeError(str(error)) from error


def _explain(**sizes) -> int:
    from ddeq_fast.explain import explain

    print(explain(**sizes))
    return 0


COMMANDS = {"explain": _explain}
