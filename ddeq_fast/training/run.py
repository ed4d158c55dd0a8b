"""The folder of a run: settings, metrics, checkpoints, and the model that it trained."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddeq_fast.data.dataset import Dataset, Split
from ddeq_fast.training.build import make_model
from ddeq_fast.training.config import Config
from ddeq_fast.utils import checkpoints

CONFIG_FILE, METRICS_FILE, LAST, BEST = "config.json", "metrics.jsonl", "last.safetensors", "best.safetensors"
# What an audit leaves there.
AUDIT_FILE, AUDIT_PICTURE = "audit.json", "audit.png"
# Held by who writes there; see `locks`.
LOCK = ".lock"
# Settings of the machine, which may change from one start to the next.
_MACHINE = ("root", "threads", "device", "cuda_graph")
# How many clouds of a split a run is recognised by.
_RECOGNISED = 16


def line(entry: dict) -> str:
    """An entry of metrics.jsonl."""
    return json.dumps(entry) + "\n"


def read_config(folder: Path) -> Config:
    """The settings of a run; raises FileNotFoundError if `folder` holds none, ValueError naming a damaged file."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: {path} is missing")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    return Config.from_json(text, path)


def read_metrics(folder: Path) -> list[dict]:
    """All entries of a run's metrics.jsonl; a last line cut short by a crash is left out.

    Raises ValueError naming file and line where one is no entry, or of an earlier step than the one before.
    """
    path = Path(folder) / METRICS_FILE
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    entries = []
    for number, text in enumerate(lines, start=1):
        try:
            entries.append(json.loads(text.decode("utf-8")))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8: {error}") from error
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
    places = []
    for number, entry in enumerate(entries, start=1):
        if not _is_entry(entry):
            raise ValueError(f"{path}, line {number}: no entry with step, seconds, split and numbers")
        places.append((entry["step"], entry["split"] == "test"))
        if places[-2:] != sorted(set(places[-2:])):
            raise ValueError(f"{path}, line {number}: step {entry['step']} is there already, or comes too late")
    return entries


def read_verdict(folder: Path) -> str | None:
    """What the last audit of a run said of its equilibria; None if there was none.

    Raises ValueError naming a damaged file.
    """
    path = Path(folder) / AUDIT_FILE
    if not path.is_file():
        return None
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))["verdict"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: no audit: {error}") from error
    if not isinstance(verdict, str):
        raise ValueError(f"{path}: no audit: its verdict is {verdict!r:.40}")
    return verdict


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.get("split") not in ("train", "test") or "seconds" not in entry:
        return False
    numbers = all(_is_number(value) for key, value in entry.items() if key != "split")
    return numbers and isinstance(entry.get("step"), int) and entry["step"] >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_empty(folder: Path) -> bool:
    """Whether a new run may be put into `folder`: no run is there, or one that ended before all its files were made.

    Raises FileExistsError if what is there can neither be continued nor be overwritten without a loss.
    """
    missing = [name for name in (CONFIG_FILE, LAST) if not (folder / name).exists()]
    if not missing:
        return False
    kept = [name for name in (BEST, METRICS_FILE) if (folder / name).exists() and (folder / name).stat().st_size]
    if kept:
        raise FileExistsError(f"{folder} holds {kept[0]} of a run, but no {missing[0]}: choose another --run")
    return True


def identity(config: Config, dataset: Dataset) -> dict:
    """What a checkpoint shares with the run that continues it: settings, and the data by which they are recognised."""
    return {"config": asdict(config), "data": {"train": _portrait(dataset.train), "test": _portrait(dataset.test)}}


def _portrait(split: Split) -> dict:
    """Size and labels of a split, and size and first point of some clouds."""
    places = torch.linspace(0, len(split) - 1, min(len(split), _RECOGNISED)).long().tolist()
    return {
        "clouds": len(split),
        "labels": checkpoints.checksum({"labels": split.labels.long()}),
        "sizes": [len(split.points[i]) for i in places],
        "points": [split.points[i][0].tolist() for i in places],
    }


def check_info(info: dict, config: Config, path: Path, total_steps: int | None = None) -> None:
    """Raises ValueError naming `path` unless `info` is of a checkpoint of a run with these settings."""
    step, best, seconds = (info.get(name) for name in ("step", "best", "seconds"))
    if not isinstance(step, int) or isinstance(step, bool) or step < 0 or step > (total_steps or step):
        end = "" if total_steps is None else f" of a run of {total_steps} steps"
        raise ValueError(f"{path} is damaged: it is after step {step!r}{end}")
    if best is not None and not _is_finite(best):
        raise ValueError(f"{path} is damaged: its best is {best!r}")
    if not _is_finite(seconds):
        raise ValueError(f"{path} is damaged: its seconds is {seconds!r}")
    there = Config.from_json(json.dumps(info.get("config")), path)
    other = [
        f"{item.name} {getattr(there, item.name)!r}, not {getattr(config, item.name)!r}"
        for item in fields(Config)
        if item.name not in _MACHINE and getattr(there, item.name) != getattr(config, item.name)
    ]
    if other:
        raise ValueError(f"{path} is of a run with other settings than {CONFIG_FILE}: {', '.join(other[:8])}")


def check_data(info: dict, dataset: Dataset, path: Path) -> None:
    """Raises ValueError naming `path` if its run was trained on other data; rounding may differ between machines."""
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        here = _portrait(split)
        try:
            there = dict(info["data"][name])
            points, known = (torch.tensor(part.pop("points"), dtype=torch.float64) for part in (here, there))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: its description of the data is wrong: {error}") from error
        same = here == there and points.shape == known.shape
        if not same or not torch.allclose(points, known, rtol=1e-3, atol=1e-3 * float(known.abs().mean())):
            what = {"train": "training", "test": "held-out"}[name]
            raise ValueError(f"{path} is of a run on other data than {dataset.name}: its {what} clouds differ")


def load_model(folder: Path, checkpoint: str, dataset: Dataset) -> nn.Module:
    """The model of a run from "last" or "best", in evaluation mode on the CPU."""
    config, path = read_config(folder), Path(folder) / {"last": LAST, "best": BEST}[checkpoint]
    tensors, info = checkpoints.load(path)
    model = make_model(config, dataset.dim, dataset.classes)
    checkpoints.unpack_model(tensors, model, path)
    check_info(info, config, path)
    return model.eval()
