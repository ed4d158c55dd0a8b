"""Weights of the original DDEQ code, under the names used here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddeq_fast.utils.validation import check_path

# Left: name here. Right: name there, below "deq_model.".
_TRANSPORT = {
    "lift_z": "equivariant_z",
    "lift_x": "equivariant_x",
    "norm_lift_z": "ln1",
    "norm_lift_x": "ln2",
    "bilinear": "bilinear",
    "norm_bilinear": "ln3",
    "widen_z": "equivariant_z2",
    "widen_x": "equivariant_x2",
    "norm_widen_z": "ln4",
    "norm_widen_x": "ln5",
    "norm_start": "ln6",
    "x_encoder": "x_self_encoder.layers",
    "self_encoder": "self_encoder.layers",
    "cross_encoder": "cross_encoder.layers",
    "final": "ffn",
}
# Left: module there. Right: module of a model here.
_MODULES = {f"deq_model.{theirs}": f"ddeq.transport.{ours}" for ours, theirs in _TRANSPORT.items()}
_MODULES |= {"classifier.linear": "head", "embedding_model": "lift"}
_PARTS = (
    ("multihead_attn.in_proj_", "project_in."),
    ("multihead_attn.out_proj.", "project_out."),
    ("bilinear.layer_norm.", "bilinear.norm."),
    ("scale_net.0.", "scale.linear1."),
    ("scale_net.2.", "scale.linear2."),
    ("shift_net.0.", "shift.linear1."),
    ("shift_net.2.", "shift.linear2."),
)


def transport_name(key: str) -> str | None:
    """The name in `TransportMap` of a parameter of the original's `DEQ`; None if it has no counterpart."""
    for theirs, ours in _PARTS:
        key = key.replace(theirs, ours)
    for ours, theirs in _TRANSPORT.items():
        if key.startswith(theirs + "."):
            return ours + key[len(theirs) :]
    return None


def original_name(name: str) -> str:
    """The inverse of `transport_name`."""
    for theirs, ours in _PARTS:
        name = name.replace(ours, theirs)
    module = max((ours for ours in _TRANSPORT if name.startswith(ours + ".")), key=len)
    return _TRANSPORT[module] + name[len(module) :]


def from_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a model of the original code, renamed for `load_state_dict` of a `Classifier` or `Completer`.

    Raises:
        TypeError: something that is no dict of tensors.
        ValueError: listing the keys that have no counterpart here.
    """
    return _renamed("state_dict", state_dict)


def load_original(model: nn.Module, checkpoint: Mapping[str, Tensor] | str | os.PathLike[str]) -> None:
    """Load a model of the original code into a `Classifier` or `Completer` of the same sizes, in its dtype.

    A model for padded clouds needs a `TransportMap(attend_to_padding=True)`. The start cloud stays the model's own: the
    original code draws it anew in every call.

    Args:
        model: left as it was if anything does not fit.
        checkpoint: a state dict, or the path of one written by `torch.save`; read with `weights_only=True`.

    Raises:
        TypeError: a model or checkpoint that is none.
        ValueError: a file that is no checkpoint, or whose loading would run code; listing the keys that have no
            counterpart, that are missing, or whose shapes differ.
        FileNotFoundError: there is no such file.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a Classifier or Completer, got {type(model).__name__}")
    state_dict = checkpoint if isinstance(checkpoint, Mapping) else _read(check_path("checkpoint", checkpoint))
    weights, expected = _renamed("checkpoint", state_dict), model.state_dict()
    expected.pop("ddeq.start", None)
    faults = [f"{name} is not in the model" for name in weights if name not in expected]
    faults += [f"{name} is not in the checkpoint" for name in expected if name not in weights]
    for name in sorted(set(weights) & set(expected)):
        theirs, ours = tuple(weights[name].shape), tuple(expected[name].shape)
        if theirs != ours:
            faults.append(f"{name} has shape {theirs} in the checkpoint, {ours} in the model")
    if faults:
        raise ValueError(f"checkpoint does not fit the model: {'; '.join(sorted(faults))}")
    model.load_state_dict(weights, strict=False)


def _renamed(argument: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`from_original` of an argument of that name."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"{argument} must be a dict of tensors, got {type(state_dict).__name__}")
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise TypeError(f"{argument} must hold tensors by name, got {type(value).__name__} under {key!r:.60}")
        name = key
        for theirs, ours in _PARTS:
            name = name.replace(theirs, ours)
        module = next((theirs for theirs in _MODULES if name.startswith(theirs + ".")), None)
        if module is None:
            unknown.append(key)
        else:
            renamed[_MODULES[module] + name[len(module) :]] = value
    if unknown:
        raise ValueError(f"{argument} has keys that do not fit: {', '.join(sorted(unknown))}")
    return renamed


def _read(path: Path) -> Any:
    """What a file written by `torch.save` holds, if that is tensors and plain containers."""
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: unpickling, zip files, tensors
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise ValueError(f"checkpoint {path} is no file of weights alone: {reason[0]}") from error
