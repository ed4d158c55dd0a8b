"""The loop: every step depends on (config, step) and the state before it alone.

That is what makes `resume` exact: the order of the clouds, jitter, dropout and all else that is random are drawn from
generators seeded by the step's number, so that nothing but weights and optimizer state needs to be saved. It also makes
several processes agree: each draws for the whole batch and takes its share.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddeq_fast.clouds import PointClouds
from ddeq_fast.data import augment
from ddeq_fast.data.dataset import Batch, Dataset, Split, generator
from ddeq_fast.gradients import jacobian_norm, residual_direction
from ddeq_fast.models import Equilibrium
from ddeq_fast.networks.layers import share_of_batch
from ddeq_fast.solvers import quiet
from ddeq_fast.sums.backends import expected_calls
from ddeq_fast.training.build import load_data, make_model
from ddeq_fast.training.config import Config
from ddeq_fast.training.metrics import combine, one_line
from ddeq_fast.training.optimizers import make_optimizer
from ddeq_fast.training.processes import Processes, local_device
from ddeq_fast.training.records import Records, check_empty
from ddeq_fast.training.run import BEST, LAST, METRICS_FILE, check_data, check_info, identity, read_config, read_metrics
from ddeq_fast.training.tasks import Task, make_task
from ddeq_fast.utils import checkpoints, console, tree
from ddeq_fast.utils.optional import require
from ddeq_fast.utils.signals import stop_on_signal
from ddeq_fast.utils.validation import choose_device

_GENERATORS = threading.RLock()
# Streams of random numbers; a task has others.
_WEIGHTS, _JITTER, _STEP, _POINTS, _ROTATION, _SCALING, _NOISE = range(7)
BuildModel = Callable[[Config, Dataset], nn.Module]


class Interrupted(Exception):
    """The user asked to stop; the run is saved up to the last whole step."""


class Trainer:
    """One run in one folder: config.json, metrics.jsonl, last.safetensors and best.safetensors.

    In a job of several processes (torchrun) each has its trainer, takes its share of every batch, and averages
    gradients with the others; the first one alone writes.

    While a run is made, read or trained, its folder is locked: another process is refused.

    Args:
        config: settings of a new run.
        folder: where it is kept; created.
        dataset: the data, loaded by name if None.
        build: makes another model than that of the settings, called as build(config, dataset).

    Raises:
        FileExistsError: the folder holds a run already.
        InUse: another process writes there.
        OSError: the folder cannot be written.
    """

    def __init__(self, config: Config, folder: Path, dataset: Dataset | None = None, build: BuildModel | None = None):
        folder = Path(folder)
        check_empty(folder)  # before the data are read
        self._build(config, folder, dataset, build)
        self.records.make_folder()
        with self.records.alone():
            self.records.create(config, lambda: self.save(LAST))

    @classmethod
    def resume(cls, folder: Path, dataset: Dataset | None = None, build: BuildModel | None = None) -> Trainer:
        """The run of `folder` where its last checkpoint left it; dataset and build as for a new one.

        Raises FileNotFoundError if there is none, ValueError naming the file if one is damaged, of other settings or
        of other data, InUse if another process writes there.
        """
        folder, trainer = Path(folder), cls.__new__(cls)
        trainer._build(read_config(folder), folder, dataset, build)
        with trainer.records.alone():
            trainer._load()
        return trainer

    def _build(self, config: Config, folder: Path, dataset: Dataset | None, build: BuildModel | None) -> None:
        """All parts, at step zero, and nothing on disk."""
        self.config, self.folder = config, folder
        self.device = choose_device(local_device(config.device))
        self.processes = Processes.join(self.device)
        self.dataset = load_data(config) if dataset is None else dataset
        self.task = make_task(config, self.dataset)
        with self._randomness(_WEIGHTS):
            self.model = _model_of(config, self.dataset) if build is None else build(config, self.dataset)
        self.processes.check(self.model)
        self.model = self.model.to(self.device)
        self.parallel = self.processes.wrap(self.model)
        self.optimizer = make_optimizer(config.optimizer, self.model.parameters(), config.lr, config.weight_decay)
        self.steps_per_epoch = math.ceil(len(self.dataset.train) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step, self.seconds = 0, 0.0
        self.best: float | None = None
        self.records = Records(folder, self.processes)
        self._tensorboard: Any = None

    def _load(self) -> None:
        """The state of the last checkpoint."""
        path, metrics = self.folder / LAST, read_metrics(self.folder)
        tensors, info = checkpoints.load(path)
        checkpoints.unpack_model(tensors, self.model, path)
        check_info(info, self.config, path, self.total_steps)
        check_data(info, self.dataset, path)
        checkpoints.unpack_optimizer(tensors, self.model, self.optimizer, path)
        self.step, self.best, self.seconds = info["step"], info["best"], info["seconds"]
        # Lines written after the checkpoint are about to be written again.
        kept = [entry for entry in metrics if entry["step"] <= self.step]
        if (kept[-1]["step"] if kept else 0) < self.step:
            warnings.warn(
                f"{self.folder / METRICS_FILE} lacks steps before {self.step}, the last checkpoint's", stacklevel=3
            )
        self.records.take_up(kept)

    @contextmanager
    def _randomness(self, *stream: int) -> Iterator[None]:
        """Torch's global generators seeded by (seed, stream), and put back afterwards; for one thread at a time."""
        devices = [self.device] if self.device.type == "cuda" else []
        with _GENERATORS, torch.random.fork_rng(devices):
            torch.manual_seed(generator(self.config.seed, *stream).initial_seed())
            yield

    def save(self, name: str) -> None:
        """Write a checkpoint of the present state to the run's folder."""
        if not self.processes.main:
            return
        info = {"step": self.step, "best": self.best, "seconds": self.seconds}
        info |= identity(self.config, self.dataset)
        self.records.save(name, checkpoints.pack(self.model, self.optimizer), info)

    def learning_rate(self, step: int) -> float:
        """Linear growth over `warmup` steps, and half a cosine down to zero or steps down."""
        config = self.config
        grown = min(1.0, (step + 1) / (config.warmup + 1))
        if config.schedule == "step":
            return config.lr * grown * config.step_factor ** (step // self.steps_per_epoch // config.step_epochs)
        return config.lr * grown * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))

    def train_step(self, batch: Batch) -> dict:
        """One optimizer step on a batch, or on this process's share of it; returns the metrics of the whole.

        Raises FloatingPointError if the loss or its gradient are not finite.
        """
        self.model.train()
        total = len(batch.indices)
        rows = self.processes.share(total)
        mine = len(rows)
        # A process without samples computes on one that does not count: the others wait for its gradients.
        rows = rows if mine else torch.tensor([0])
        inputs = tree.select(self.task.inputs(batch, self.step), rows)
        inputs = tree.apply(lambda t: t.to(self.device), inputs)
        share = share_of_batch(total, rows) if self.processes.size > 1 else nullcontext()
        # Metrics count the samples above the tolerance; a warning a step would hide all others.
        with self._randomness(_STEP, self.step), share, quiet(), expected_calls(self.total_steps):
            output = self.task.run(self.parallel, inputs)
            loss, parts = self.task.loss(output, inputs)
            objective = loss
            if self.config.jacobian > 0:
                norm = self._jacobian(output.equilibrium, total, rows)
                objective = loss + self.config.jacobian * norm
        if not torch.isfinite(objective):
            raise FloatingPointError(f"loss is {objective.item()} at step {self.step}: try a smaller lr")
        # Processes average their gradients; the batch's is the mean over samples.
        lr = self._update(objective * (mine * self.processes.size / total))
        with torch.no_grad():
            metrics = {"loss": float(loss.detach()), **parts, **self.task.metrics(output, inputs)}
        if self.config.jacobian > 0:
            metrics["jacobian"] = float(norm.detach())
        return {"split": "train", **combine(self.processes.gather((mine, metrics))), "lr": lr}

    def _jacobian(self, equilibrium: Equilibrium, total: int, rows: Tensor) -> Tensor:
        """The penalty; random directions are those that one process would draw for the whole batch."""
        info, direction = equilibrium.backward_info, None
        known = None if info is None else info.evaluated
        particles, image = (equilibrium.particles, None) if known is None else known
        if self.config.jacobian_direction == "residual":
            direction = residual_direction(equilibrium.problem, particles.detach(), image)
        elif self.processes.size > 1:
            shape = (total, *particles.shape[1:])
            direction = torch.randn(shape, dtype=particles.dtype, device=particles.device)[rows]
        return jacobian_norm(equilibrium.problem, particles, direction=direction, image=image).mean()

    def _update(self, objective: Tensor) -> float:
        """Step down the gradient of `objective`; returns the learning rate."""
        lr = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        objective.backward()
        length = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not torch.isfinite(length):  # as are all weights after it, and the next checkpoint
            raise FloatingPointError(f"the gradient is {length.item()} at step {self.step}: try a smaller lr")
        self.optimizer.step()
        self.step += 1
        return lr

    def batches(self) -> Iterator[Batch]:
        """Batches from the present step to the end of its epoch."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        by_length = self.config.batching == "by-length"
        order = self.dataset.train.order(self.config.batch_size, self.config.seed, epoch, by_length)
        for place, indices in enumerate(order[done:], start=done):
            batch = self.dataset.train.batch(indices)
            yield batch._replace(clouds=self._augmented(batch.clouds, epoch, place))

    def _augmented(self, clouds: PointClouds, epoch: int, place: int) -> PointClouds:
        """Training clouds as random changes make them, a function of (seed, epoch, place of the batch) alone."""
        config = self.config

        def draw(stream: int) -> torch.Generator:
            return generator(config.seed, stream, epoch, place)

        if config.drawn_points > 0:
            clouds = augment.draw_points(clouds, config.drawn_points, draw(_POINTS))
        if config.rotation != "none":
            clouds = augment.rotate(clouds, config.rotation, draw(_ROTATION))
        if config.scaling > 0:
            clouds = augment.scale(clouds, config.scaling, draw(_SCALING))
        if config.jitter > 0:
            clouds = augment.jitter(clouds, config.jitter, draw(_JITTER))
        if config.noise > 0:
            clouds = augment.add_noise(clouds, config.noise, draw(_NOISE))
        return clouds

    def fit(self, progress: bool = True, tensorboard: bool = False) -> dict:
        """Train to the end; returns the metrics of the last evaluation.

        Ctrl-C (or SIGTERM) ends the step at hand, saves, and raises `Interrupted`; a second Ctrl-C does not wait.

        Args:
            progress: show a line an evaluation and, in a terminal, a bar; where standard error cannot be written,
                neither.
            tensorboard: write metrics for TensorBoard to the run folder too; raises ImportError if it is not installed.

        Raises:
            InUse: another process writes to the folder.
            ValueError: another one has trained the run on since it was made or read here.
            OSError: the folder cannot be written; the run can be resumed from its last checkpoint.
            FloatingPointError: loss or gradient are not finite.
        """
        main = self.processes.main
        if tensorboard:
            self._tensorboard = require("torch.utils.tensorboard", "tensorboard").SummaryWriter(self.folder)
        bar = console.Bar(self.total_steps, self.step, shown=progress and main)
        with self.records.alone(), stop_on_signal() as stopped, bar:
            self.records.check_unchanged()
            return self._fit(bar, stopped, shown=progress and main)

    def _fit(self, bar: console.Bar, stopped: threading.Event, shown: bool) -> dict:
        """From the present step to the end, or to where a signal stops it; the metrics of the last evaluation."""
        config, stop = self.config, False
        result: dict | None = None
        while self.step < self.total_steps and not stop:
            for batch in self.batches():
                metrics = self._timed(self.train_step, batch)
                self._log(metrics)
                bar.step(one_line(metrics))
                stop = any(self.processes.gather(stopped.is_set()))
                if stop:
                    break
            epoch, rest = divmod(self.step, self.steps_per_epoch)
            finished = self.step == self.total_steps
            if rest == 0 and (finished or epoch % config.eval_every == 0):
                result = self._timed(self.evaluate)
                self._log(result)
                if shown:
                    bar.say(f"epoch {epoch:3d}  {one_line(result)}")
                self._keep_best(result[self.task.score])
            if stop or finished or (rest == 0 and epoch % config.save_every == 0):
                self.save(LAST)
        if self.step < self.total_steps:
            raise Interrupted(f"stopped after step {self.step} of {self.total_steps}; saved in {self.folder}")
        return self._last_result() if result is None else result

    def _keep_best(self, score: float) -> None:
        """Write a checkpoint if no evaluation before had a better score."""
        if not math.isnan(score) and (self.best is None or self.task.better(score, self.best)):
            self.best = score
            self.save(BEST)

    def _last_result(self) -> dict:
        """The evaluation of a run that had been finished before, or one of this moment."""
        last = read_metrics(self.folder)[-1:]
        return last[0] if last and last[0]["split"] == "test" else self._timed(self.evaluate)

    def evaluate(self) -> dict:
        """Metrics of the model on the test split."""
        with expected_calls(self.total_steps):  # the sums of training steps are compiled by now
            result = evaluate(self.task, self.model, self.dataset.test, self.device, self.processes)
        return {"split": "test", **result}

    def _timed(self, work: Callable[..., dict], *arguments: Any) -> dict:
        """The result of `work`, its time added to that of the run."""
        started = time.perf_counter()
        result = work(*arguments)
        self.seconds += time.perf_counter() - started
        return result

    def _log(self, metrics: dict) -> None:
        """Add metrics of the present step to the records."""
        if not self.processes.main:
            return
        self.records.log({"step": self.step, "seconds": round(self.seconds, 3), **metrics})
        if self._tensorboard is not None:
            for name in metrics.keys() - {"split"}:
                self._tensorboard.add_scalar(f"{name}/{metrics['split']}", metrics[name], self.step)


def _model_of(config: Config, dataset: Dataset) -> nn.Module:
    """The model of the settings, for the clouds and labels of this data set."""
    return make_model(config, dataset.dim, dataset.classes)


def evaluate(
    task: Task,
    model: nn.Module,
    split: Split,
    device: torch.device,
    processes: Processes | None = None,
    batch_size: int = 256,
) -> dict[str, float]:
    """Loss and metrics of a model over a whole split, in evaluation mode; processes share the batches."""
    return combine(measure_split(task, model, split, device, processes, batch_size))


@torch.no_grad()
def measure_split(
    task: Task,
    model: nn.Module,
    split: Split,
    device: torch.device,
    processes: Processes | None = None,
    batch_size: int = 256,
) -> list[tuple[int, dict[str, Any]]]:
    """The same batch by batch: (number of clouds, loss and metrics), for `metrics.combine` and `metrics.by_group`."""
    model.eval()
    parts, processes = [], processes or Processes()
    order = split.order(batch_size)
    for number in processes.share(len(order)).tolist():
        batch = split.batch(order[number])
        inputs = tree.apply(lambda t: t.to(device), task.inputs(batch, None))
        with quiet():
            out = task.run(model, inputs)
        loss, made_of = task.loss(out, inputs)
        parts.append(
            (len(batch.indices), {"loss": float(loss), **made_of, **task.metrics(out, inputs, evaluation=True)})
        )
    return [part for some in processes.gather(parts) for part in some]
