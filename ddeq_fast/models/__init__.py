"""Models: the DDEQ layer, a classifier and a completer of clouds on top of it."""

from __future__ import annotations

from ddeq_fast.models.classifier import Classification, Classifier
from ddeq_fast.models.completer import Completer, Completion, missing_points
from ddeq_fast.models.layer import DDEQ, Equilibrium

__all__ = [
    "DDEQ",
    "Equilibrium",
    "Classifier",
    "Classification",
    "Completer",
    "Completion",
    "missing_points",
]
