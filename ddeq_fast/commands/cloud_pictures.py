"""Pictures of a cloud on its way to a target, a PNG of some moments or a GIF, and of a completed one.

They need matplotlib.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from ddeq_fast.utils import drawing
from ddeq_fast.utils.drawing import BLUE, ORANGE
from ddeq_fast.utils.files import write_atomically
from ddeq_fast.utils.optional import require

ENDINGS = (".png", ".gif")
# Points drawn of each cloud: more are a solid patch.
SHOWN = 6000
_MOMENTS = {".png": (0.0, 0.02, 0.06, 0.2, 1.0), ".gif": tuple((i / 40) ** 2 for i in range(41))}


def moments(ending: str, steps: int) -> set[int]:
    """Steps after which a picture of this kind wants the cloud: most of the way is covered early."""
    return {round(share * steps) for share in _MOMENTS[ending.lower()]}


def all_moments(steps: int) -> set[int]:
    """Those of any picture: which one is wanted may be said in the end, when a flow is resumed."""
    return set().union(*(moments(ending, steps) for ending in ENDINGS))


def draw(path: Path, frames: dict[int, Tensor], target: Tensor, history: list[tuple[int, float]]) -> None:
    """Write the picture: clouds by step and the target, all (n, 2) from `seen`, and MMD by step."""
    wanted = moments(path.suffix, history[-1][0])
    chosen = [(step, frames[step]) for step in sorted(wanted & frames.keys())]
    if path.suffix.lower() == ".gif":
        write_atomically(path, _animation(chosen, target))
    else:
        _panels(chosen, target, history, path)


def draw_completion(path: Path, partial: Tensor, new: Tensor) -> None:
    """Write a PNG: a partial cloud (n, d), and beside it the same with its new points (k, d) in another colour."""
    plane = view(partial)
    old, added = seen(partial, plane), seen(new, plane)
    figure, ((left, right),) = drawing.figure(1, 2, 7, 3.8)
    limits = _limits(torch.cat((old, added)), room=0.55)
    _scatter(left, old, limits, f"partial: {len(partial):,} points", BLUE)
    _scatter(right, old, limits, f"completed: {len(partial) + len(new):,} points", BLUE)
    _scatter(right, added, limits, None, ORANGE)
    drawing.write_png(figure, path)


def view(target: Tensor) -> Tensor:
    """The plane that pictures are projected to, (d, 2) orthonormal columns.

    Three dimensions are seen from a little above, more by their first two principal components.
    """
    d = target.shape[1]
    if d <= 2:
        return torch.eye(d, 2)
    if d == 3:
        return torch.tensor([[0.82, -0.57, 0.0], [0.25, 0.36, 0.90]]).mT
    points = _some(target).double()
    return torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh[:2].mT.contiguous()


def seen(points: Tensor, plane: Tensor) -> Tensor:
    """As many points as are drawn, (m, 2) in the plane of `view`."""
    return _some(points).double() @ plane.double()


def _some(points: Tensor) -> Tensor:
    return points[:: -(-len(points) // SHOWN)].cpu()


def _scatter(axis, shown: Tensor, limits, title: str | None, colour: str) -> None:
    size = min(12.0, max(1.5, 4000 / len(shown)))  # few points are not to be dust, nor many a blot
    axis.scatter(*shown.unbind(1), s=size, color=colour, alpha=0.5, linewidths=0)
    axis.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[], aspect="equal")
    if title is not None:
        axis.set_title(title)


def _limits(target: Tensor, room: float = 0.75) -> list[tuple[float, float]]:
    """A square about the target, that many times as wide to each side: with room for the particles' start."""
    middle, half = (target.amax(0) + target.amin(0)) / 2, room * float((target.amax(0) - target.amin(0)).max())
    return [(float(centre) - half, float(centre) + half) for centre in middle]


def _panels(frames, target, history, path: Path) -> None:
    figure, ((*places, last, curve),) = drawing.figure(1, len(frames) + 2, 2.6 * (len(frames) + 2), 2.9)
    limits = _limits(target)
    for axis, (step, points) in zip(places, frames, strict=True):
        _scatter(axis, points, limits, f"step {step}", BLUE)
    _scatter(last, target, limits, "target", ORANGE)
    curve.loglog([max(step, 1) for step, _ in history], [value for _, value in history], color=BLUE)
    curve.set(title="MMD", xlabel="step")
    curve.grid(alpha=0.3)
    drawing.write_png(figure, path)


def _animation(frames, target) -> bytes:
    require("PIL", "plots")
    from PIL import Image

    limits, images = _limits(target), []
    for step, points in frames:
        figure, ((axis,),) = drawing.figure(1, 1, 4, 4.2)
        _scatter(axis, points, limits, f"step {step}", BLUE)
        figure.canvas.draw()
        images.append(Image.frombuffer("RGBA", figure.canvas.get_width_height(), figure.canvas.buffer_rgba()))
    images = [image.convert("RGB").quantize(64) for image in images]
    content = io.BytesIO()
    durations = [80] * (len(images) - 1) + [2000]
    images[0].save(content, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return content.getvalue()
