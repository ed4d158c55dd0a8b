"""Scores of completed held-out clouds that no evaluation in training has: F-score and earth mover's distance."""

from __future__ import annotations

from statistics import mean

import torch
from torch import Tensor, nn

from ddeq_fast import earth_movers_distance, f_score, training
from ddeq_fast.clouds import PointClouds
from ddeq_fast.data import Dataset
from ddeq_fast.solvers import quiet
from ddeq_fast.training.config import Config
from ddeq_fast.utils import tree

# Threshold of the F-score, as a share of the largest side of the whole cloud's bounding box. The hundredth that
# Tatarchenko et al. take is for denser clouds: 500 points on a surface are three times as far apart.
F_THRESHOLD = 0.03
# Points of equal weight by which clouds enter the earth mover's distance, which is then an exact assignment.
TRANSPORTED = 512
NAMES = ("f_score", "emd")


def resampled(clouds: PointClouds, count: int) -> Tensor:
    """(B, count, d): points that stand for equal shares of each cloud's weight, taken at even steps in their order."""
    edges = (clouds.weights / clouds.weights.sum(1, keepdim=True)).double().cumsum(1)
    steps = (torch.arange(count, dtype=edges.dtype, device=edges.device) + 0.5) / count
    # Rounding must not lead behind the last point that has weight.
    last = clouds.mask.long().cumsum(1).argmax(1, keepdim=True)
    index = torch.searchsorted(edges, steps.expand(len(edges), -1).contiguous()).minimum(last)
    return clouds.points.gather(1, index[..., None].expand(-1, -1, clouds.points.shape[2]))


@torch.no_grad()
def scores(model: nn.Module, config: Config, data: Dataset) -> dict[str, float]:
    """Mean scores of completed held-out clouds and of the partial ones, as results of an evaluation."""
    task = training.make_task(config, data)
    device = next(model.parameters()).device
    found: dict[str, list[float]] = {f"{part}{name}": [] for part in ("", "partial_") for name in NAMES}
    for indices in data.test.order(config.batch_size):
        inputs = tree.apply(lambda t: t.to(device), task.inputs(data.test.batch(indices), None))
        with quiet():
            output, whole = task.run(model.eval(), inputs), inputs.whole
        # Padding, put where a real point is, does not make the box larger.
        inside = torch.where(whole.mask[..., None], whole.points, whole.points[:, :1])
        side = (inside.amax(1) - inside.amin(1)).amax(1).clamp_min(1e-12)[:, None, None]
        for part, cloud in (("", PointClouds(output.points, output.weights)), ("partial_", inputs.clouds)):
            scaled = cloud.points / side, whole.points / side
            score = f_score(*scaled, F_THRESHOLD, x_mask=cloud.mask, y_mask=whole.mask).score
            moved = earth_movers_distance(resampled(cloud, TRANSPORTED), resampled(whole, TRANSPORTED)).distance
            found[f"{part}f_score"] += score.tolist()
            found[f"{part}emd"] += moved.tolist()
    return {name: mean(values) for name, values in found.items()}
