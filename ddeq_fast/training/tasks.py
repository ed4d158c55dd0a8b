"""What a model is trained for: its inputs, its loss, its metrics. The loop around it knows no more than `Task`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddeq_fast.clouds import PointClouds, packed, spread_normal
from ddeq_fast.data.dataset import Batch, generator
from ddeq_fast.distances.chamfer import chamfer
from ddeq_fast.distances.entropy import kde_entropy
from ddeq_fast.models import missing_points
from ddeq_fast.solvers import SolveInfo
from ddeq_fast.sums.mmd import squared_mmd
from ddeq_fast.training.config import Config

# Streams of random numbers; a step's others are in `loop`.
OBSERVED, SEEDS, EVALUATION = 10, 11, 12


class Task:
    """A task on batches of clouds.

    Inputs are tuples of tensors with the batch axis first; outputs have an attribute `equilibrium`, None for models
    that have none. Metrics are means over samples, but for those named worst_...; `score` names the one whose largest
    value (least if `lower_is_better`) makes the best checkpoint.
    """

    score: str
    lower_is_better = False

    def __init__(self, config: Config):
        self.config = config

    def inputs(self, batch: Batch, step: int | None):
        """What the model and the loss need of a batch; random parts are a function of (seed, step) alone, or, for
        step None, of (seed, index of the cloud)."""
        raise NotImplementedError

    def run(self, model: nn.Module, inputs):
        """The output of the model."""
        raise NotImplementedError

    def loss(self, output, inputs) -> tuple[Tensor, dict[str, float]]:
        """Mean loss over the batch, and what it is made of, to be reported."""
        raise NotImplementedError

    def better(self, metrics: dict, best: float) -> bool:
        """Whether these metrics beat the best score so far."""
        return metrics[self.score] < best if self.lower_is_better else metrics[self.score] > best

    def metrics(self, output, inputs) -> dict[str, float]:
        """What is reported besides, cheap enough for every step."""
        info = None if output.equilibrium is None else output.equilibrium.info
        return {} if info is None else _solve_metrics(info)

    def results(self, output, inputs) -> dict[str, float]:
        """What an evaluation reports in place of `metrics`."""
        return self.metrics(output, inputs)


def _solve_metrics(info: SolveInfo) -> dict[str, float]:
    return {
        "evaluations": float(info.evaluations.double().mean()),
        "residual": float(info.residual.mean()),
        "worst_residual": float(info.residual.max()),
        "converged": float(info.converged.double().mean()),
    }


class Labelled(NamedTuple):
    """Clouds and their labels (B,)."""

    clouds: PointClouds
    labels: Tensor


class Classification(Task):
    """Labels of clouds; cross-entropy."""

    score = "accuracy"

    def inputs(self, batch, step):
        return Labelled(batch.clouds, batch.labels)

    def run(self, model, inputs):
        return model(*inputs.clouds)

    def loss(self, output, inputs):
        return F.cross_entropy(output.logits, inputs.labels), {}

    def metrics(self, output, inputs):
        hits = output.logits.argmax(1) == inputs.labels
        return {"accuracy": float(hits.double().mean()), **super().metrics(output, inputs)}


class Partial(NamedTuple):
    """Observed parts of clouds, the whole clouds, and standard normal noise (B, n, d) for the points to be added."""

    clouds: PointClouds
    whole: PointClouds
    noise: Tensor


class Completion(Task):
    """Whole clouds from their observed parts.

    The loss is the squared MMD to the whole, plus a multiple of the Chamfer distance, less one of the entropy of
    the new points.
    """

    score = "chamfer"
    lower_is_better = True

    def inputs(self, batch, step):
        whole, seed = batch.clouds, self.config.seed
        removal = self.config.removal()
        if step is None:
            draws = [generator(seed, EVALUATION, index) for index in batch.indices.tolist()]
            observed = torch.zeros_like(whole.mask)
            for i, (draw, n) in enumerate(zip(draws, whole.mask.sum(1).tolist(), strict=True)):
                observed[i, :n] = removal(whole.points[i, :n], draw)
        else:
            observed = removal(whole, generator(seed, OBSERVED, step))
        clouds = packed(whole.points, whole.weights * observed)
        missing = missing_points(clouds.weights, self.config.growth)
        noise = whole.points.new_zeros(len(missing), int(missing.max()), whole.points.shape[2])
        if self.config.seeds == "even":
            noise = spread_normal(*noise.shape[1:]).to(noise).expand_as(noise)
        elif step is None:
            for i, (draw, n) in enumerate(zip(draws, missing.tolist(), strict=True)):
                noise[i, :n] = torch.randn(n, noise.shape[2], generator=draw)
        else:
            noise = torch.randn(noise.shape, generator=generator(seed, SEEDS, step)).to(noise)
        return Partial(clouds, whole, noise)

    def run(self, model, inputs):
        return model(*inputs.clouds, noise=inputs.noise)

    def loss(self, output, inputs):
        whole = inputs.whole
        loss = squared_mmd(output.points, whole.points, x_weights=output.weights, y_weights=whole.weights).mean()
        parts = {"mmd": float(loss.detach())}
        if self.config.chamfer > 0:
            distance = chamfer(output.points, whole.points, x_mask=output.weights > 0, y_mask=whole.mask).mean()
            parts["chamfer"] = float(distance.detach())
            loss = loss + self.config.chamfer * distance
        if self.config.entropy > 0:
            new = (output.weights > 0) & ~output.observed
            loss = loss - self.config.entropy * kde_entropy(output.points, self.config.bandwidth, mask=new).mean()
        return loss, parts

    def results(self, output, inputs):
        """Chamfer distance and squared MMD to the whole cloud, and those of the partial cloud."""
        result = {}
        for prefix, cloud in (("", PointClouds(output.points, output.weights)), ("partial_", inputs.clouds)):
            distances = chamfer(cloud.points, inputs.whole.points, x_mask=cloud.mask, y_mask=inputs.whole.mask)
            weights = {"x_weights": cloud.weights, "y_weights": inputs.whole.weights}
            discrepancies = squared_mmd(cloud.points, inputs.whole.points, **weights)
            result |= {f"{prefix}chamfer": float(distances.mean()), f"{prefix}mmd": float(discrepancies.mean())}
        return {**result, **super().results(output, inputs)}


TASKS = {"classify": Classification, "complete": Completion}


def make(config: Config) -> Task:
    """The task of these settings."""
    return TASKS[config.task](config)
