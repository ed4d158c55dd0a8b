"""Where the time of a training step goes: data, encoding, solve, gradient, penalty, optimizer.

A model of a preset is trained for some steps, without checkpoints and evaluations; the first ones, in which solves are
longer and sums are being compiled, do not count. With --profile clocks around the parts of a step say what each takes;
time belongs to the innermost part that is running.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean, median
from unittest import mock

import torch

from bench import machine, options
from bench.measure import synchronise
from bench.profile import Clock
from bench.report import write_json
from ddeq_fast.models import layer
from ddeq_fast.training import Trainer
from ddeq_fast.training.config import Config
from ddeq_fast.training.presets import PRESETS

REST = "rest of the step"


@contextmanager
def clocks(clock: Clock, trainer: Trainer):
    """Clocks around the parts of a training step."""
    ddeq = trainer.model.ddeq
    parts = [
        (trainer.task, "inputs", "inputs of the task"),
        (ddeq.transport, "encode", "encode X"),
        (layer.solvers, "run", "solve"),
        (ddeq.backward, "attach", "gradient: evaluations with a graph"),
        (trainer, "_jacobian", "penalty"),
        (trainer.task, "loss", "loss"),
        (torch.Tensor, "backward", "backward pass"),
        (trainer.optimizer, "step", "optimizer"),
        (trainer.task, "metrics", "metrics"),
    ]
    with ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(mock.patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        yield


def endless(trainer: Trainer):
    """Batches, epoch after epoch."""
    while True:
        yield from trainer.batches()


def measure(trainer: Trainer, warmup: int, steps: int, profiled: bool) -> dict:
    """Seconds of each of `steps` steps after `warmup`, evaluations of F in each, and seconds of the parts."""
    batches, device = endless(trainer), trainer.device.type
    for _ in range(warmup):
        trainer.train_step(next(batches))
    seconds, evaluations, clouds = [], [], 0
    clock = Clock(device)
    clock.stack = [REST]
    with clocks(clock, trainer) if profiled else ExitStack():
        for _ in range(steps):
            synchronise(device)
            began = time.perf_counter()
            batch = clock.timed("data", next)(batches)
            entry = trainer.train_step(batch)
            synchronise(device)
            seconds.append(time.perf_counter() - began)
            evaluations.append(entry["evaluations"])
            clouds += len(batch.indices)
    clock.timed(REST, lambda: None)()
    return {
        "step_seconds": median(seconds),
        "clouds_per_second": clouds / sum(seconds),
        "evaluations": mean(evaluations),
        "parts": {part: spent / steps for part, spent in clock.seconds.items()} if profiled else {},
    }


def report(name: str, row: dict) -> str:
    """Markdown: the step, and its parts where they were measured."""
    lines = [
        f"{name}: {1e3 * row['step_seconds']:.1f} ms a step (median), {row['clouds_per_second']:.0f} clouds a second, "
        f"{row['evaluations']:.1f} evaluations a solve"
    ]
    if row["parts"]:
        total = sum(row["parts"].values())
        lines += ["", "| part | ms a step | share |", "|---|---|---|"]
        for part, spent in sorted(row["parts"].items(), key=lambda item: -item[1]):
            lines.append(f"| {part} | {1e3 * spent:.2f} | {spent / total:.0%} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("train", __doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default="digits", help="default: %(default)s")
    parser.add_argument("--root", help="folder of the data's files", default="")
    parser.add_argument("--steps", type=int, default=50, help="steps that count (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=30, help="steps before those (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda... (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="say where the time of a step goes")
    options.add_json(parser)
    return parser


def main(argv: list[str]) -> int:
    """Train, print, and write what is asked for."""
    args = _parser().parse_args(argv)
    for name in ("steps", "warmup"):
        if getattr(args, name) < 1:
            raise SystemExit(f"bench train: error: --{name} must be at least 1, got {getattr(args, name)}")
    changes = {"root": args.root, "threads": args.threads, "device": args.device}
    config = Config(**{**PRESETS[args.preset].settings, **changes})
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(config, Path(scratch, "run"))
        row = measure(trainer, args.warmup, args.steps, args.profile)
    described = machine.describe()
    print(machine.line(described))
    print(report(args.preset, row))
    if args.json:
        write_json(args.json, {"machine": described, "preset": args.preset, **row})
    return 0
