"""What a model is trained for: its inputs, its loss, its metrics. The loop around it knows no more than `Task`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddeq_fast.clouds import PointClouds, compact, spread_normal
from ddeq_fast.data.dataset import Batch, Dataset, generator
from ddeq_fast.distances.chamfer import chamfer
from ddeq_fast.distances.entropy import kde_entropy
from ddeq_fast.models import Classification, Completion, missing_points
from ddeq_fast.sums.mmd import squared_mmd
from ddeq_fast.training.build import make_removal
from ddeq_fast.training.config import Config
from ddeq_fast.training.metrics import BALANCED, METRICS, SOLVE, Measured, measure

# Streams of random numbers; a step's others are in `loop`.
OBSERVED, START, EVALUATION = 10, 11, 12


class Task:
    """A task on batches of clouds.

    Inputs are tuples of tensors with the batch axis first; outputs have an attribute `equilibrium`, None for models
    that have none. What is measured is named, from the table of `metrics`:

    reported: in every step, cheap enough for that.
    results: of an evaluation.
    score: the one whose best value makes the best checkpoint.
    """

    reported: tuple[str, ...] = SOLVE
    results: tuple[str, ...] = SOLVE
    score: str = "loss"

    def __init__(self, config: Config):
        self.config = config

    def prepare(self, dataset: Dataset) -> None:
        """Called once, before the first batch, with the data that are trained on."""

    def inputs(self, batch: Batch, step: int | None) -> Any:
        """What the model and the loss need of a batch; random parts are a function of (seed, step) alone, or, for
        step None, of (seed, index of the cloud)."""
        raise NotImplementedError

    def run(self, model: nn.Module, inputs: Any) -> Any:
        """The output of the model."""
        raise NotImplementedError

    def loss(self, output: Any, inputs: Any) -> tuple[Tensor, dict[str, float]]:
        """Mean loss over the batch, and metrics that it is made of."""
        raise NotImplementedError

    def metrics(self, output: Any, inputs: Any, evaluation: bool = False) -> dict[str, Measured]:
        """What is measured of a batch besides: in training, or in an evaluation."""
        return measure(self.results if evaluation else self.reported, output, inputs)

    def better(self, value: float, best: float) -> bool:
        """Whether this score beats the best one so far."""
        return METRICS[self.score].better(value, best)


class Labelled(NamedTuple):
    """Clouds and their labels (B,)."""

    clouds: PointClouds
    labels: Tensor


class ClassificationTask(Task):
    """Labels of clouds; cross-entropy.

    With class weights a sample counts N / (C N_c): N training clouds, N_c of its class, C classes that have some. The
    mean of that over the training clouds is one, and a batch's loss the mean over its samples, whatever is in it.
    """

    reported = ("accuracy", *SOLVE)
    results = ("accuracy", BALANCED, *SOLVE)
    score = "accuracy"

    def __init__(self, config: Config):
        super().__init__(config)
        self._class_weights: Tensor | None = None

    def prepare(self, dataset: Dataset) -> None:
        counts = dataset.train.labels.bincount(minlength=dataset.classes)
        balanced = len(dataset.train) / ((counts > 0).sum() * counts.clamp_min(1))
        # A class without training clouds may be among the others: it counts as the mean.
        self._class_weights = torch.where(counts > 0, balanced, 1.0)

    def inputs(self, batch: Batch, step: int | None) -> Labelled:
        return Labelled(batch.clouds, batch.labels)

    def run(self, model: nn.Module, inputs: Labelled) -> Classification:
        return model(*inputs.clouds)

    def loss(self, output: Classification, inputs: Labelled) -> tuple[Tensor, dict[str, float]]:
        if self.config.class_weights == "none":
            return F.cross_entropy(output.logits, inputs.labels), {}
        if self._class_weights is None:
            raise ValueError("class_weights are of a data set: make the task of one, make_task(config, dataset)")
        losses = F.cross_entropy(output.logits, inputs.labels, reduction="none")
        return (self._class_weights.to(losses)[inputs.labels] * losses).mean(), {}


class Partial(NamedTuple):
    """Observed parts of clouds, the whole clouds, and standard normal noise (B, n, d) for the points to be added."""

    clouds: PointClouds
    whole: PointClouds
    noise: Tensor


class CompletionTask(Task):
    """Whole clouds from their observed parts.

    The loss is the squared MMD to the whole, plus a multiple of the Chamfer distance, less one of the entropy of
    the new points.
    """

    reported = SOLVE
    results = ("chamfer", "mmd", "partial_chamfer", "partial_mmd", *SOLVE)
    score = "chamfer"

    def inputs(self, batch: Batch, step: int | None) -> Partial:
        seed = self.config.seed
        draws = [generator(seed, EVALUATION, i) for i in batch.indices.tolist()] if step is None else []
        clouds = self._observed(batch.clouds, step, draws)
        missing = missing_points(clouds.weights, self.config.growth)
        return Partial(clouds, batch.clouds, self.noise(clouds.points, missing, step, draws))

    def _observed(self, whole: PointClouds, step: int | None, draws: list[torch.Generator]) -> PointClouds:
        """The observed parts of clouds, drawn together in this step, or, for step None, each by its own generator."""
        removal = make_removal(self.config)
        if step is not None:
            observed = removal(whole, generator(self.config.seed, OBSERVED, step))
        else:
            observed = torch.zeros_like(whole.mask)
            for i, (draw, n) in enumerate(zip(draws, whole.mask.sum(1).tolist(), strict=True)):
                observed[i, :n] = removal(whole.points[i, :n], draw)
        return compact(whole.points, whole.weights * observed)

    def noise(self, like: Tensor, missing: Tensor, step: int | None, draws: list[torch.Generator]) -> Tensor:
        """Where `missing` (B,) new points of each cloud `like` (B, m, d) start, (B, n, d), standard normal.

        Drawn together in this step, or, for step None, each by its own generator; of even starts nothing is drawn.
        """
        noise = like.new_zeros(len(missing), int(missing.max()), like.shape[2])
        if self.config.start == "even":
            return spread_normal(*noise.shape[1:]).to(noise).expand_as(noise)
        if step is not None:
            return torch.randn(noise.shape, generator=generator(self.config.seed, START, step)).to(noise)
        for i, (draw, n) in enumerate(zip(draws, missing.tolist(), strict=True)):
            noise[i, :n] = torch.randn(n, noise.shape[2], generator=draw)
        return noise

    def run(self, model: nn.Module, inputs: Partial) -> Completion:
        return model(*inputs.clouds, noise=inputs.noise)

    def loss(self, output: Completion, inputs: Partial) -> tuple[Tensor, dict[str, float]]:
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


TASKS: dict[str, type[Task]] = {"classify": ClassificationTask, "complete": CompletionTask}


def make_task(config: Config, dataset: Dataset | None = None) -> Task:
    """The task of these settings, prepared for a data set if there is one."""
    task = TASKS[config.task](config)
    if dataset is not None:
        task.prepare(dataset)
    return task
