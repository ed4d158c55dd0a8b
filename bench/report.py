"""Results as Markdown tables and log-log plots."""

from __future__ import annotations

import json
from pathlib import Path

from ddeq_fast.utils.drawing import BLUE, GREEN, ORANGE, figure, write_png
from ddeq_fast.utils.files import write_atomically
from ddeq_fast.utils.units import duration

COLOURS = {
    "triton": BLUE,
    "compiled": GREEN,
    "keops": "#CC79A7",
    "dense": ORANGE,
    "torch.compile": "#E69F00",
    "tree": "#999933",
    "geomloss": "#882255",
}


def table(rows: list[dict]) -> str:
    """A line for each case and method: time, pairs a second, speed against the slowest, peak memory, error."""
    lines = [
        "| case | method | time | pairs/s | x slowest | peak memory | relative error |",
        "|---|---|---|---|---|---|---|",
    ]
    slowest = {}
    for row in rows:
        slowest[row["case"]] = max(slowest.get(row["case"], 0.0), row["seconds"])
    for row in rows:
        cells = [row["case"], row["method"], duration(row["seconds"], 3), f"{row['pairs'] / row['seconds']:.2e}"]
        cells.append(f"{slowest[row['case']] / row['seconds']:.1f}")
        cells += [f"{row['peak_bytes'] / 2**20:.1f} MiB", f"{row['error']:.1e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> bool:
    """Time and peak memory against n, a row of panels for each family of several sizes; False if there is none."""
    families = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    families = {name: part for name, part in families.items() if len({row["n"] for row in part}) > 1}
    if not families:
        return False
    drawing, axes = figure(len(families), 2, 10, 3.6 * len(families))
    for (name, part), (left, right) in zip(families.items(), axes, strict=True):
        for axis, key, label in ((left, "seconds", "time (s)"), (right, "peak_bytes", "peak memory (bytes)")):
            for method in dict.fromkeys(row["method"] for row in part):
                points = sorted((row["n"], row[key]) for row in part if row["method"] == method and row[key] > 0)
                if points:
                    axis.loglog(*zip(*points, strict=True), marker="o", label=method, color=COLOURS.get(method))
            axis.set(title=name, xlabel="points in each cloud", ylabel=label)
            axis.grid(alpha=0.3, which="both")
        left.legend()
    write_png(drawing, path)
    return True


def write_json(path: Path, content: dict, indent: int | None = 1) -> None:
    """Write machine and results of a measurement."""
    write_atomically(path, (json.dumps(content, indent=indent) + "\n").encode())
