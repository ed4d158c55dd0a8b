"""Training of the classifier: a loop whose every step depends on (config, step) and the state before it alone.

That is what makes `resume` exact: the order of the clouds, jitter, dropout and all else that is random are drawn from
generators seeded by the step's number, so that nothing but weights and optimizer state needs to be saved.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ddeq_fast import checkpoints, data
from ddeq_fast.config import Config
from ddeq_fast.data.augment import jitter
from ddeq_fast.data.dataset import Batch, Split, generator
from ddeq_fast.implicit import jacobian_norm
from ddeq_fast.models import Classification, Classifier
from ddeq_fast.optional import require
from ddeq_fast.solvers import ConvergenceWarning

CONFIG, METRICS, LAST, BEST = "config.json", "metrics.jsonl", "last.safetensors", "best.safetensors"
_WEIGHTS, _JITTER, _STEP = range(3)  # streams of random numbers


class Interrupted(Exception):
    """The user asked to stop; the run is saved up to the last whole step."""


def choose_device(name: str) -> torch.device:
    """The device of that name, "auto" for a GPU if there is one; raises ValueError if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


class Trainer:
    """One run in one folder: config.json, metrics.jsonl, last.safetensors and best.safetensors.

    Args:
        config: settings of a new run.
        folder: where it is kept; created.
        dataset: the data, loaded by name if None.

    Raises:
        FileExistsError: the folder holds a run already.
    """

    def __init__(self, config: Config, folder: Path, dataset: data.Dataset | None = None):
        folder = Path(folder)
        if (folder / CONFIG).exists():
            raise FileExistsError(f"{folder} already holds a run: continue it with --resume, or choose another --run")
        self._build(config, folder, dataset)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.write_atomically(folder / CONFIG, config.to_json().encode())
        checkpoints.write_atomically(folder / METRICS, b"")
        self.save(LAST)

    @classmethod
    def resume(cls, folder: Path, dataset: data.Dataset | None = None) -> Trainer:
        """The run of `folder` where its last checkpoint left it.

        Raises FileNotFoundError if there is none, ValueError naming the file if one is damaged.
        """
        folder, trainer = Path(folder), cls.__new__(cls)
        trainer._build(read_config(folder), folder, dataset)
        tensors, info = checkpoints.load(folder / LAST)
        checkpoints.unpack_model(tensors, trainer.model, folder / LAST)
        checkpoints.unpack_optimizer(tensors, trainer.model, trainer.optimizer)
        trainer.step, trainer.best, trainer.seconds = info["step"], info["best"], info["seconds"]
        # Lines written after the checkpoint are about to be written again.
        kept = [entry for entry in read_metrics(folder) if entry["step"] <= trainer.step]
        checkpoints.write_atomically(folder / METRICS, "".join(map(_line, kept)).encode())
        return trainer

    def _build(self, config, folder, dataset):
        self.config, self.folder = config, folder
        self.device = choose_device(config.device)
        self.dataset = data.load(config.data, intensity=config.intensity) if dataset is None else dataset
        with self._randomness(_WEIGHTS):
            self.model = config.build(self.dataset.dim, self.dataset.classes).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.steps_per_epoch = math.ceil(len(self.dataset.train) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step, self.best, self.seconds = 0, -1.0, 0.0

    @contextmanager
    def _randomness(self, *stream: int):
        """Torch's global generators seeded by (seed, stream), and put back afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(generator(self.config.seed, *stream).initial_seed())
            yield

    def save(self, name: str) -> None:
        """Write a checkpoint of the present state to the run's folder."""
        info = {"step": self.step, "best": self.best, "seconds": self.seconds}
        checkpoints.save(self.folder / name, checkpoints.pack(self.model, self.optimizer), info)

    def learning_rate(self, step: int) -> float:
        """Linear growth over `warmup` steps, then half a cosine down to zero."""
        grown = min(1.0, (step + 1) / (self.config.warmup + 1))
        return self.config.lr * grown * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))

    def train_step(self, batch: Batch) -> dict:
        """One optimizer step on a batch; returns its metrics."""
        self.model.train()
        clouds, labels = batch.clouds.to(self.device), batch.labels.to(self.device)
        with self._randomness(_STEP, self.step), _convergence_in_metrics():
            out = self.model(*clouds)
            loss = F.cross_entropy(out.logits, labels)
            objective = loss
            if self.config.jacobian > 0:
                equilibrium = out.equilibrium
                norm = jacobian_norm(equilibrium.problem, equilibrium.particles).mean()
                objective = loss + self.config.jacobian * norm
        if not torch.isfinite(objective):
            raise FloatingPointError(f"loss is {objective.item()} at step {self.step}: try a smaller lr")
        lr = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        metrics = {"split": "train", "loss": float(loss.detach()), **_summary(out, labels), "lr": lr}
        if self.config.jacobian > 0:
            metrics["jacobian"] = float(norm.detach())
        return metrics

    def batches(self):
        """Batches from the present step to the end of its epoch."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        order = self.dataset.train.order(self.config.batch_size, self.config.seed, epoch)
        for place, indices in enumerate(order[done:], start=done):
            batch = self.dataset.train.batch(indices)
            if self.config.jitter > 0:
                randomness = generator(self.config.seed, _JITTER, epoch, place)
                batch = batch._replace(clouds=jitter(batch.clouds, self.config.jitter, randomness))
            yield batch

    def fit(self, progress: bool = True) -> dict:
        """Train to the end; returns the metrics of the last evaluation.

        Ctrl-C (or SIGTERM) ends the step at hand, saves, and raises `Interrupted`; a second Ctrl-C does not wait.
        """
        config, result = self.config, None
        bar = require("tqdm", "train").tqdm(
            total=self.total_steps, initial=self.step, disable=not progress, unit="step", file=sys.stderr
        )
        with _stop_on_signal() as stopped, bar:
            while self.step < self.total_steps and not stopped.is_set():
                for batch in self.batches():
                    metrics = self._timed(self.train_step, batch)
                    self._log(metrics)
                    bar.update()
                    bar.set_postfix_str(_brief(metrics))
                    if stopped.is_set():
                        break
                epoch, rest = divmod(self.step, self.steps_per_epoch)
                finished = self.step == self.total_steps
                if rest == 0 and (finished or epoch % config.eval_every == 0):
                    result = self._timed(self.evaluate)
                    self._log(result)
                    if progress:
                        bar.write(f"epoch {epoch:3d}  {_brief(result)}", file=sys.stderr)
                    if result["accuracy"] > self.best:
                        self.best = result["accuracy"]
                        self.save(BEST)
                if stopped.is_set() or finished or (rest == 0 and epoch % config.save_every == 0):
                    self.save(LAST)
        if self.step < self.total_steps:
            raise Interrupted(f"stopped after step {self.step} of {self.total_steps}; saved in {self.folder}")
        return result or [m for m in read_metrics(self.folder) if m["split"] == "test"][-1]

    def evaluate(self) -> dict:
        """Metrics of the model on the test split."""
        return {"split": "test", **evaluate(self.model, self.dataset.test, self.device)}

    def _timed(self, work, *arguments):
        """The result of `work`, its time added to that of the run."""
        started = time.perf_counter()
        result = work(*arguments)
        self.seconds += time.perf_counter() - started
        return result

    def _log(self, metrics: dict) -> None:
        entry = {"step": self.step, "seconds": round(self.seconds, 3), **metrics}
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(_line(entry))


@torch.no_grad()
def evaluate(model: Classifier, split: Split, device: torch.device, batch_size: int = 256) -> dict:
    """Loss, accuracy, evaluations a solve and residuals of a model over a whole split, in evaluation mode."""
    model.eval()
    parts = []
    for batch in split.batches(batch_size):
        clouds, labels = batch.clouds.to(device), batch.labels.to(device)
        with _convergence_in_metrics():
            out = model(*clouds)
        loss = float(F.cross_entropy(out.logits, labels))
        parts.append((len(labels), {"loss": loss, **_summary(out, labels)}))
    total = sum(n for n, _ in parts)
    mean = {key: sum(n * part[key] for n, part in parts) / total for key in parts[0][1]}
    return {**mean, "worst_residual": max(part["worst_residual"] for _, part in parts)}


@contextmanager
def _convergence_in_metrics():
    """No warnings of samples above the tolerance: metrics count them, and a warning a step would hide the rest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _summary(out: Classification, labels: Tensor) -> dict:
    info = out.equilibrium.info
    return {
        "accuracy": float((out.logits.argmax(1) == labels).double().mean()),
        "evaluations": float(info.evaluations.double().mean()),
        "residual": float(info.residual.mean()),
        "worst_residual": float(info.residual.max()),
        "converged": float(info.converged.double().mean()),
    }


def _brief(metrics: dict) -> str:
    """The metrics in one line for people; residuals are MMD(Z, F(Z)) relative to the start."""
    return (
        f"{metrics['split']}: loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.2%}  "
        f"evaluations {metrics['evaluations']:.1f}  residual {metrics['worst_residual']:.1e}"
    )


def _line(entry: dict) -> str:
    return json.dumps(entry) + "\n"


def read_config(folder: Path) -> Config:
    """The settings of a run; raises FileNotFoundError if `folder` holds none."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: {path} is missing")
    return Config.from_json(path.read_text(encoding="utf-8"), path)


def read_metrics(folder: Path) -> list[dict]:
    """All entries of a run's metrics.jsonl; a last line cut short by a crash is left out."""
    path = Path(folder) / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
    return entries


def load_model(folder: Path, checkpoint: str, dataset: data.Dataset) -> Classifier:
    """The model of a run from "last" or "best", in evaluation mode on the CPU."""
    config, path = read_config(folder), Path(folder) / {"last": LAST, "best": BEST}[checkpoint]
    tensors, _ = checkpoints.load(path)
    model = config.build(dataset.dim, dataset.classes)
    checkpoints.unpack_model(tensors, model, path)
    return model.eval()


@contextmanager
def _stop_on_signal():
    """An event that SIGINT and SIGTERM set, once; the handlers before are back after that, and at the end."""
    stopped, before = threading.Event(), {}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)
        before.clear()

    def stop(number, frame):
        stopped.set()
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    try:
        yield stopped
    finally:
        restore()
