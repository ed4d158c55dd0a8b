"""Pictures of a cloud on its way to a target: a PNG of some moments, or a GIF. Needs matplotlib."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from ddeq_fast.checkpoints import write_atomically
from ddeq_fast.optional import require

ENDINGS = (".png", ".gif")
# Points drawn of each cloud: more are a solid patch.
SHOWN = 6000
_MOMENTS = {".png": (0.0, 0.02, 0.06, 0.2, 1.0), ".gif": tuple((i / 40) ** 2 for i in range(41))}


def moments(path: Path, steps: int) -> set[int]:
    """Steps after which a picture at `path` wants the cloud: most of the way is covered early."""
    return {round(share * steps) for share in _MOMENTS[path.suffix.lower()]}


def draw(path: Path, frames: list[tuple[int, Tensor]], target: Tensor, history: list[tuple[int, float]]) -> None:
    """Write the picture: clouds (n, d) by step, the target, and MMD by step.

    Three dimensions are seen from a little above, more by their first two principal components.
    """
    view = _view(target).double()
    if path.suffix.lower() == ".gif":
        content = _animation(frames, target, view)
    else:
        content = _panels(frames, target, history, view)
    write_atomically(path, content)


def some(points: Tensor) -> Tensor:
    """As many points as are drawn."""
    return points[:: -(-len(points) // SHOWN)].cpu()


def _view(target: Tensor) -> Tensor:
    """The plane that pictures are projected to, (d, 2) orthonormal columns."""
    d = target.shape[1]
    if d <= 2:
        return torch.eye(d, 2)
    if d == 3:
        return torch.tensor([[0.82, -0.57, 0.0], [0.25, 0.36, 0.90]]).mT
    centred = (target - target.mean(0)).cpu()
    return torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, -2:].flip(1)


def _figure(columns: int, width: float, height: float):
    require("matplotlib", "plots")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _scatter(axis, points: Tensor, view: Tensor, limits, title: str, colour: str) -> None:
    shown = some(points).double() @ view
    size = min(12.0, max(1.5, 4000 / len(shown)))  # few points are not to be dust, nor many a blot
    axis.scatter(*shown.unbind(1), s=size, color=colour, alpha=0.5, linewidths=0)
    axis.set(title=title, xlim=limits[0], ylim=limits[1], xticks=[], yticks=[], aspect="equal")


def _limits(target: Tensor, view: Tensor) -> list[tuple[float, float]]:
    """A square about the target with room for the particles' start."""
    seen = some(target).double() @ view
    middle, half = (seen.amax(0) + seen.amin(0)) / 2, 0.75 * float((seen.amax(0) - seen.amin(0)).max())
    return [(float(centre) - half, float(centre) + half) for centre in middle]


def _panels(frames, target, history, view) -> bytes:
    figure, axes = _figure(len(frames) + 2, 2.6 * (len(frames) + 2), 2.9)
    limits = _limits(target, view)
    for axis, (step, points) in zip(axes, frames, strict=False):
        _scatter(axis, points, view, limits, f"step {step}", "#0072B2")
    _scatter(axes[-2], target, view, limits, "target", "#D55E00")
    axes[-1].loglog([max(step, 1) for step, _ in history], [value for _, value in history], color="#0072B2")
    axes[-1].set(title="MMD", xlabel="step")
    axes[-1].grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _animation(frames, target, view) -> bytes:
    require("PIL", "plots")
    from PIL import Image

    limits, images = _limits(target, view), []
    for step, points in frames:
        figure, (axis,) = _figure(1, 4, 4.2)
        _scatter(axis, points, view, limits, f"step {step}", "#0072B2")
        figure.canvas.draw()
        images.append(Image.frombuffer("RGBA", figure.canvas.get_width_height(), figure.canvas.buffer_rgba()))
    images = [image.convert("RGB").quantize(64) for image in images]
    content = io.BytesIO()
    durations = [80] * (len(images) - 1) + [2000]
    images[0].save(content, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return content.getvalue()
