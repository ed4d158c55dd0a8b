"""The trained model of a run, as the commands that use one load it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ddeq_fast.data.dataset import Dataset
from ddeq_fast.training import Config, Task, load_data, load_model, make_task, read_config
from ddeq_fast.utils.validation import choose_device


class Trained(NamedTuple):
    """A run: its settings, data and task, and its model, in evaluation mode on `device`."""

    config: Config
    dataset: Dataset
    task: Task
    model: nn.Module
    device: torch.device


def load(folder: Path, options: argparse.Namespace, task: str | None = None) -> Trained:
    """The run in `folder`, with the `checkpoint` and `device` of a command's options; sets torch's threads.

    Raises FileNotFoundError, ValueError: no run, one of another task than the one that is wanted, no data, a damaged
    file, no such device.
    """
    config = read_config(folder)
    if task not in (None, config.task):
        raise ValueError(f"the run in {folder} must have task {task}, it has task {config.task}")
    torch.set_num_threads(config.threads)
    device = choose_device(options.device)
    dataset = load_data(config)
    model = load_model(folder, options.checkpoint, dataset).to(device)
    return Trained(config, dataset, make_task(config, dataset), model, device)
