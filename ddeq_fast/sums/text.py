"""Radial kernels as text, on the command line and in operators: "riesz:1", "gaussian:0.5", "riesz:1 + 0.5*gaussian:2".

The text of a kernel is `str(kernel)`; `parse` gives the kernel back with every digit of its numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ddeq_fast.sums import radial
from ddeq_fast.sums.radial import Mixture, RadialKernel

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_TERM = re.compile(rf"\s*(?:([-+]?{_NUMBER})\s*\*\s*)?([a-z][a-z0-9_]*)(?::({_NUMBER}))?\s*(\+|$)", re.IGNORECASE)


def parse(text: str) -> RadialKernel:
    """The kernel of a text: terms [weight*]name[:number] joined by "+".

    The name is that of a registered kernel; the number is what its class is made from, an exponent or a bandwidth, 1 if
    it is absent.

    Raises ValueError, saying what is expected, for any other text and for a number out of range.
    """
    terms = split(text)
    if not terms or not all(name in radial.names() for _, name, _ in terms):
        raise ValueError(
            f"kernel must be such as riesz:1 or gaussian:0.5, of {', '.join(radial.names())}; got {text!r}"
        )
    return joined([(weight, radial.named(name, float(number))) for weight, name, number in terms])


def split(text: str) -> list[tuple[float, str, str]]:
    """(weight, name, number) of each term, the number as it is written; an empty list for what is no such text."""
    terms: list[tuple[float, str, str]] = []
    place, more = 0, "+"
    while more:
        term = _TERM.match(text, place)
        if term is None:
            return []
        terms.append((float(term[1] or 1), term[2].lower(), term[3] or "1"))
        place, more = term.end(), term[4]
    return terms


def joined(terms: Sequence[tuple[float, RadialKernel]]) -> RadialKernel:
    """A mixture, or the kernel itself where it stands alone."""
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else Mixture(tuple(terms))
