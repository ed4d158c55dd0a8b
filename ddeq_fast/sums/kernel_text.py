"""Radial kernels as people write them on a command line: "riesz:1", "gaussian:0.5", "riesz:1 + 0.5*gaussian:2"."""

from __future__ import annotations

import re

from ddeq_fast.sums.encoding import decode
from ddeq_fast.sums.radial import RadialKernel

NAMES = ("riesz", "gaussian", "laplacian", "inverse_multiquadric")
_TERM = re.compile(r"(?:([-+]?[0-9.]+(?:e[-+]?\d+)?)\s*\*\s*)?([a-z_]+)(?::([0-9.]+(?:e[-+]?\d+)?))?", re.IGNORECASE)


def parse_kernel(text: str) -> RadialKernel:
    """The kernel: terms [weight*]name[:number] joined by "+"; the number is r of Riesz or a bandwidth, 1 if absent.

    Raises ValueError saying what is expected.
    """
    terms = []
    for part in text.split("+"):
        found = _TERM.fullmatch(part.strip())
        if found is None or found[2].lower() not in NAMES:
            raise ValueError(f"kernel must be such as riesz:1 or gaussian:0.5, of {', '.join(NAMES)}; got {text!r}")
        try:
            terms.append(f"{float(found[1] or 1)!r} {found[2].lower()} {float(found[3] or 1)!r}")
        except ValueError as error:
            raise ValueError(f"kernel {text!r} has a number that is none: {error}") from error
    return decode(";".join(terms))
