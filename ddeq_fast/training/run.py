"""The folder of a run: settings, metrics, checkpoints, and the model that it trained."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from ddeq_fast import checkpoints, data
from ddeq_fast.config import Config

CONFIG, METRICS, LAST, BEST = "config.json", "metrics.jsonl", "last.safetensors", "best.safetensors"


def line(entry: dict) -> str:
    """An entry of metrics.jsonl."""
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
    for number, text in enumerate(lines, start=1):
        try:
            entries.append(json.loads(text))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
    return entries


def load_model(folder: Path, checkpoint: str, dataset: data.Dataset) -> nn.Module:
    """The model of a run from "last" or "best", in evaluation mode on the CPU."""
    config, path = read_config(folder), Path(folder) / {"last": LAST, "best": BEST}[checkpoint]
    tensors, _ = checkpoints.load(path)
    model = config.build(dataset.dim, dataset.classes)
    checkpoints.unpack_model(tensors, model, path)
    return model.eval()
