"""Weights of the original DDEQ code, under the names used here."""

from __future__ import annotations

from torch import Tensor

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
_PARTS = (
    ("multihead_attn.in_proj_", "project_in."),
    ("multihead_attn.out_proj.", "project_out."),
    ("bilinear.layer_norm.", "bilinear.norm."),
)


def from_original(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a classifier of the original code, renamed for `Classifier.load_state_dict`.

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
