"""Checkpoints: one safetensors file each, with what is no tensor as JSON in its header, and a checksum of it all.

Nothing is pickled, and a file is replaced whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from ddeq_fast.utils import files
from ddeq_fast.utils.optional import require

_INFO, _CHECKSUM = "ddeq_fast", "sha256"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_DTYPES = (*_FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def checksum(tensors: dict[str, Tensor], text: str = "") -> str:
    """A hash of names, dtypes, shapes and values of tensors, in any order of theirs, and of a text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(path: Path, tensors: dict[str, Tensor], info: dict) -> str:
    """Write tensors and JSON-serialisable `info` to `path`, atomically; returns the file's checksum.

    Tensors may share memory, in part or whole, and have any strides; each is written with values of its own.

    Raises:
        TypeError: naming an entry that is no dense tensor of floats (16 to 64 bits), integers or booleans.
        OSError: naming the file if it cannot be written; what was there stays.
    """
    encode = require("safetensors.torch", "train").save
    plain, text, memory = {}, json.dumps(info), set()
    for name, tensor in tensors.items():
        tensor = _storable(name, tensor)
        start = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if start in memory else tensor
        memory.add(start)
    found = checksum(plain, text)
    # One entry: safetensors writes several in any order, and equal checkpoints are to be equal files.
    files.write_atomically(path, encode(plain, metadata={_INFO: json.dumps({_CHECKSUM: found, **info})}))
    return found


def _storable(name: str, tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is no tensor and cannot be kept in a checkpoint: {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        kind = "meta tensor" if tensor.is_meta else f"{str(tensor.layout).removeprefix('torch.')} {tensor.dtype}"
        raise TypeError(f"{name} cannot be kept in a checkpoint: it is a {kind}")
    return tensor.detach().cpu().resolve_neg().contiguous()


def load(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(tensors, info) as written by `save`.

    Raises FileNotFoundError if there is no such file, ValueError naming it if it is damaged (its checksum is wrong or
    missing) or of another program.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    open_file = require("safetensors", "train").safe_open
    path.open("rb").close()  # a file that must not be read is not damaged
    try:
        with open_file(path, framework="pt") as file:
            info, expected = _header(file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if checksum(tensors, json.dumps(info)) != expected:
            raise ValueError("its checksum is wrong")
        return tensors, info
    except Exception as error:  # safetensors raises a class of its own
        raise _damaged(path, error) from error


def recorded_checksum(path: Path) -> str:
    """The checksum that a checkpoint's header holds, which tells it from any other; errors as in `load`."""
    try:
        with require("safetensors", "train").safe_open(path, framework="pt") as file:
            return _header(file)[1]
    except Exception as error:
        raise _damaged(path, error) from error


def _header(file) -> tuple[dict, str]:
    """The info and the checksum of an open file."""
    info = json.loads((file.metadata() or {})[_INFO])
    if not isinstance(info, dict):
        raise ValueError(f"its header holds a {type(info).__name__}, not an object")
    return info, info.pop(_CHECKSUM)


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = f"its header lacks {error}" if isinstance(error, KeyError) else error
    return ValueError(f"{path} is damaged or no checkpoint of ddeq_fast: {reason}")


def pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a model and of its optimizer's state, under the names of the model's parameters."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}:{key}"] = torch.as_tensor(value)
    return tensors


def unpack_model(tensors: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    """Put the weights among `tensors` into `model`; raises ValueError naming `path` and what does not fit.

    Weights that share memory in the model still do; parameters that are not finite do not fit.
    """
    weights = {name[len("model.") :]: value for name, value in tensors.items() if name.startswith("model.")}
    expected = model.state_dict()
    wrong = sorted(weights.keys() ^ expected.keys())
    wrong += sorted(
        f"{name}: {_kind(weights[name])}, not {_kind(expected[name])}"
        for name in weights.keys() & expected.keys()
        if _kind(weights[name]) != _kind(expected[name])
    )
    if wrong:
        raise ValueError(f"{path} does not fit the model: {', '.join(wrong[:8])}")
    parameters = weights.keys() & {name for name, _ in model.named_parameters()}
    bad = sorted(name for name in parameters if not bool(torch.isfinite(weights[name]).all()))
    if bad:
        raise ValueError(f"{path} holds weights that are not finite: {', '.join(bad[:8])}")
    for name, tensor in expected.items():
        if 0 in tensor.stride():  # expanded: no copy goes into elements that share their memory
            once = tuple(slice(1) if step == 0 else slice(None) for step in tensor.stride())
            tensor[once].copy_(weights.pop(name)[once])
    model.load_state_dict(weights, strict=False)


def unpack_optimizer(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, path: Path
) -> None:
    """Put the optimizer's state among `tensors` back; raises ValueError naming `path` and what does not fit."""
    parameters = dict(model.named_parameters())
    state: dict[str, dict[str, Tensor]] = {}
    for entry, value in tensors.items():
        if entry.startswith("optimizer."):
            name, _, key = entry[len("optimizer.") :].rpartition(":")
            state.setdefault(name, {})[key] = value
    names = {parameter: name for name, parameter in parameters.items()}
    wrong = sorted(state.keys() - parameters.keys())
    for group in optimizer.param_groups:  # of a group all have the same entries
        here = [names[parameter] for parameter in group["params"] if names.get(parameter) in state]
        keys = {key for name in here for key in state[name]}
        wrong += sorted(f"{name}:{key} is missing" for name in here for key in keys - state[name].keys())
    for name in sorted(state.keys() & parameters.keys()):
        wrong += sorted(
            f"{name}:{key}"
            for key, value in state[name].items()
            if (value.dim() and _kind(value) != _kind(parameters[name])) or not bool(torch.isfinite(value).all())
        )
    if wrong:
        raise ValueError(f"{path} does not fit the optimizer: {', '.join(wrong[:8])}")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in state.get(names.get(parameter, ""), {}).items():
                # Counters are on the CPU, as the optimizer makes them, unless its kernels are fused.
                stays = key == "step" and not group.get("fused")
                optimizer.state[parameter][key] = (value if stays else value.to(parameter.device)).clone()


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"
