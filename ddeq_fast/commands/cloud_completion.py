"""One partial cloud, in coordinates of its own, completed by the model of a run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddeq_fast.commands.trained import Trained
from ddeq_fast.data.dataset import generator
from ddeq_fast.models import missing_points
from ddeq_fast.solvers import quiet
from ddeq_fast.training.tasks import START, CompletionTask

# Clouds of the training data that the place and size of partial ones are averaged over.
_AVERAGED = 256
# The stream of the points that are drawn from a large cloud; others are in `training.tasks`.
_SHOWN = 20


class Frame(NamedTuple):
    """Place and size of clouds, by their bounding box: its middle (d,), float64, and its longest side."""

    middle: Tensor
    side: float


class Completed(NamedTuple):
    """A completion of one cloud.

    new: points (k, d), in coordinates and dtype of the partial cloud. weights: (k,), where an observed point has one,
    float64. shown: points of the partial cloud that the model was conditioned on. evaluations, residual, converged: of
    the solve, see `SolveInfo`.
    """

    new: Tensor
    weights: Tensor
    shown: int
    evaluations: int
    residual: float
    converged: bool


def frame(cloud: Tensor) -> Frame:
    """That of a cloud (n, d)."""
    low, high = cloud.double().amin(0), cloud.double().amax(0)
    return Frame((low + high) / 2, float((high - low).max()))


def usual_frame(run: Trained) -> Frame:
    """What partial clouds of the training data have on average, over evenly chosen ones.

    What is missing moves the bounding box of a cloud less than its mean.
    """
    train = run.dataset.train
    count = min(len(train), _AVERAGED)
    clouds = run.task.inputs(train.batch(torch.arange(count) * len(train) // count), None).clouds
    frames = [frame(points[mask]) for points, mask in zip(clouds.points, clouds.mask, strict=True)]
    return Frame(torch.stack([middle for middle, _ in frames]).mean(0), sum(side for _, side in frames) / count)


@torch.no_grad()
def complete(
    run: Trained,
    cloud: Tensor,
    *,
    frames: tuple[Frame, Frame] | None = None,
    points: int | None = None,
    shown: int | None = None,
    seed: int = 0,
) -> Completed:
    """The points that complete a cloud.

    Args:
        run: of a completion task, on data of the dimension of the cloud.
        cloud: (n, d), float32 or float64, on the CPU.
        frames: the cloud is moved and scaled, by one factor, from the first of them to the second, and its completion
            back; None for a cloud that is in the coordinates of the run's data.
        points: of the completed cloud, more than n; None for what the run's growth gives.
        shown: most points that the model is conditioned on, drawn at random from a larger cloud; None for the size of
            the largest training cloud.
        seed: of that draw, and of the starts of the new points where the run has random ones.

    Raises:
        FloatingPointError: new points that are not finite in the dtype of the cloud.
    """
    assert isinstance(run.task, CompletionTask)
    own = _missing(len(cloud), run)
    count = own if points is None else points - len(cloud)
    most = max(map(len, run.dataset.train.points)) if shown is None else shown
    there, here = frames or (Frame(cloud.new_zeros(()), 1.0),) * 2
    factor = here.side / there.side
    x = ((cloud.double() - there.middle) * factor + here.middle).float()
    if len(x) > most:
        x = x[torch.randperm(len(x), generator=generator(seed, _SHOWN))[:most].sort().values]
    x = x[None].to(run.device)
    noise = run.task.noise(x, torch.tensor([count]), None, [generator(seed, START)])
    with quiet():
        output = run.model(x, noise=noise, points=x.shape[1] + count)
    added = ~output.observed[0]
    new = (output.points[0, added].cpu().double() - here.middle) / factor + there.middle
    # What the model gives to points of weight one, in a share of what is missing of the cloud, not of the part shown.
    given = torch.tensor(_missing(x.shape[1], run)) / count
    weights = (output.weights[0, added].cpu() / given).double() * (own / count)
    info = output.equilibrium.info
    solve = int(info.evaluations), float(info.residual), bool(info.converged)
    if not torch.isfinite(new.to(cloud.dtype)).all():
        raise FloatingPointError(f"the completion left the range of {cloud.dtype}")
    return Completed(new.to(cloud.dtype), weights, x.shape[1], *solve)


def _missing(observed: int, run: Trained) -> int:
    """How many points the run's growth adds to so many."""
    return int(missing_points(torch.ones(1, observed), run.config.growth))
