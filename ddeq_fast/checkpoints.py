"""Checkpoints: one safetensors file each, with what is no tensor as JSON in its header. Nothing is pickled."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ddeq_fast.optional import require

_KEY = "ddeq_fast"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file by `content`, or leave it as it was: a crash half-way loses nothing."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def save(path: Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Write tensors and JSON-serialisable `info` to `path`, atomically."""
    encode = require("safetensors.torch", "train").save
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, encode(plain, metadata={_KEY: json.dumps(info)}))


def load(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(tensors, info) as written by `save`.

    Raises FileNotFoundError if there is no such file, ValueError naming it if it is damaged or of another program.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    open_file = require("safetensors", "train").safe_open
    try:
        with open_file(path, framework="pt") as file:
            info = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, info  # noqa: SIM118
    except Exception as error:  # safetensors raises a class of its own
        reason = f"its header lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is damaged or no checkpoint of ddeq_fast: {reason}") from error


def pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a model and of its optimizer's state, under the names of the model's parameters."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}:{key}"] = torch.as_tensor(value)
    return tensors


def unpack_model(tensors: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    """Put the weights among `tensors` into `model`; raises ValueError naming `path` and what does not fit."""
    weights = {name[len("model.") :]: value for name, value in tensors.items() if name.startswith("model.")}
    expected = model.state_dict()
    wrong = sorted(weights.keys() ^ expected.keys())
    wrong += sorted(n for n in weights.keys() & expected.keys() if weights[n].shape != expected[n].shape)
    if wrong:
        raise ValueError(f"{path} does not fit the model: {', '.join(wrong[:8])}")
    model.load_state_dict(weights)


def unpack_optimizer(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's state among `tensors` back."""
    parameters = dict(model.named_parameters())
    for entry, value in tensors.items():
        if entry.startswith("optimizer."):
            name, key = entry[len("optimizer.") :].rsplit(":", 1)
            parameter = parameters[name]
            # Counters stay on the CPU, as the optimizer makes them.
            state = value if value.dim() == 0 else value.to(parameter.device)
            optimizer.state[parameter][key] = state.clone()
