"""Figures without a screen, written whole or not at all. Needs matplotlib."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddeq_fast.utils.files import write_atomically
from ddeq_fast.utils.optional import require

# Okabe & Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.6"


def load_matplotlib() -> None:
    """Import matplotlib; raises ImportError if it is missing.

    A notebook's MPLBACKEND, which every program started from it inherits, may name a package that is not there, and
    matplotlib then fails to be imported, for good. Figures here need no backend: it is set afterwards, if it can be.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        matplotlib = require("matplotlib", "plots")
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure that needs no screen, and the array (rows, columns) of its axes; sizes in inches.

    Raises ImportError if matplotlib is missing.
    """
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, squeeze=False)


def write_png(made: Any, path: Path) -> None:
    """Write a figure as a PNG, atomically; raises OSError naming `path` if it cannot be written."""
    content = io.BytesIO()
    made.savefig(content, format="png")
    write_atomically(path, content.getvalue())
