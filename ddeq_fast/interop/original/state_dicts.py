"""Weights of the original DDEQ code, under the names used here."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

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
_MODULES = {f"ddeq.transport.{ours}": f"deq_model.{theirs}" for ours, theirs in _TRANSPORT.items()}
_MODULES["head"] = "classifier.linear"
_MODULES["lift"] = "embedding_model"
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


def from_original(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a model of the original code, renamed for `load_state_dict` of a `Classifier` or `Completer`.

    Raises ValueError listing the keys that have no counterpart here.
    """
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        name = key
        for theirs, ours in _PARTS:
            name = name.replace(theirs, ours)
        for ours, theirs in _MODULES.items():
            if name.startswith(theirs + "."):
                renamed[ours + name[len(theirs) :]] = value
                break
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"state_dict has keys that do not fit: {', '.join(sorted(unknown))}")
    return renamed


def load_original(model: nn.Module, checkpoint: dict[str, Tensor] | str | os.PathLike) -> None:
    """Load a model of the original code into a `Classifier` or `Completer` of the same sizes, in its dtype.

    A model for padded clouds needs a `TransportMap(attend_to_padding=True)`. The start cloud stays the model's own: the
    original code draws it anew in every call.

    Args:
        model: left as it was if anything does not fit.
        checkpoint: a state dict, or the path of one written by `torch.save`; read with `weights_only=True`.

    Raises:
        ValueError: listing the keys that have no counterpart, that are missing, or whose shapes differ.
    """
    if not isinstance(checkpoint, dict):
        checkpoint = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights, expected = from_original(checkpoint), model.state_dict()
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
