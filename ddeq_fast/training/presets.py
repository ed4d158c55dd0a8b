"""Settings by name for `ddeq-fast train --preset`: what differs from the defaults of `Config`."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """text: one line of help; settings: for `Config`."""

    text: str
    settings: dict


# Sizes and steps of Geuter et al. 2025 and their code: 128 dimensions, 32 heads, 200 flow steps, batches of 64.
_PAPER = {
    "dim_z": 128,
    "num_heads": 32,
    "dim_lift": 16,
    "dim_hidden": 512,
    "solver": "flow",
    "flow_lr": 5.0,
    "max_steps": 200,
    "tol": 1e-4,
    "jacobian": 0.0,
    "jitter": 0.0,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "warmup": 0,
    "schedule": "step",
}
_MNIST = {**_PAPER, "data": "mnist", "intensity": "none", "epochs": 5, "step_epochs": 2, "step_factor": 0.2}
_MODELNET = {**_PAPER, "data": "modelnet40-s", "cross_layers": 3, "epochs": 20, "step_epochs": 8, "step_factor": 0.1}
_COMPLETE = {"task": "complete", "cross_layers": 3, "clusters": 2, "growth": 1.275, "entropy": 1e-6}

# Of what was tried on clouds split off the training part, the most accurate in its time: Muon, and a Jacobian penalty
# along the residual.
_TRAINED = {"jacobian": 0.05, "jacobian_direction": "residual", "optimizer": "muon", "lr": 6e-3}

# Learned labels of few particles: more, or heads of fewer coordinates, take longer, and are no more accurate.
_LABELLED = {**_TRAINED, "jacobian": 0.2, "dim_label": 8, "particles": 6, "num_heads": 4, "x_layers": 2}

# Labelled particles in completion, solved to a residual of 1e-2.
_LABELLED_COMPLETION = {
    **_TRAINED,
    "task": "complete",
    "start": "even",
    "mass": "learned",
    "chamfer": 1.0,
    "dim_lift": 32,
    "dim_hidden": 256,
    "cross_layers": 2,
    "tol": 1e-2,
    "batch_size": 32,
    "batching": "by-length",
    "warmup": 200,
    "threads": 2,
}

# Clouds of unit radius, which lie in any direction.
_SHAPES = {"data": "folder", "jitter": 0.0, "rotation": "all", "scaling": 0.1, "batch_size": 32, "threads": 2}
_SHAPES_CLASSIFY = {
    **_SHAPES,
    "noise": 0.01,
    "drawn_points": 256,
    "scales": 4,
    "dim_hidden": 64,
    "eval_every": 5,
    "epochs": 30,
    **_LABELLED,
}

PRESETS = {
    # Changed so much, clouds of the training part that were split off are told apart best.
    "digits": Preset(
        "8 x 8 digits of scikit-learn, labelled particles; about 99 % in 75 seconds on one CPU core",
        {**_LABELLED, "jitter": 0.2, "noise": 0.05, "epochs": 38},
    ),
    "mnist-classify": Preset(
        "MNIST digits, half the paper's width, trained on 64 points of a cloud drawn anew in every step, labelled "
        "particles; about 99 % in 3 minutes on one CPU core",
        {**_LABELLED, "data": "mnist", "drawn_points": 64, "epochs": 18, "tol": 1e-2, "lr": 3e-3},
    ),
    "mnist-classify-paper": Preset("MNIST digits with the paper's sizes; for a GPU", _MNIST),
    "mnist-complete": Preset(
        "MNIST digits without two clusters, sized for two CPU cores: labelled particles solved to a residual of 1e-2, "
        "half the paper's width, Chamfer distance beside MMD in the loss, learned mass",
        {
            "data": "mnist",
            "intensity": "none",
            "jitter": 0.03,
            "growth": 1.2,
            "dim_label": 2,
            "eval_every": 3,
            "epochs": 33,
            **_LABELLED_COMPLETION,
        },
    ),
    "mnist-complete-paper": Preset(
        "MNIST digits without two clusters, the paper's sizes; for a GPU", _MNIST | _COMPLETE
    ),
    "modelnet-classify": Preset("ModelNet40 with the paper's sizes; for a GPU", _MODELNET),
    "modelnet-complete": Preset(
        "ModelNet40 without two clusters, the paper's sizes; for a GPU", _MODELNET | _COMPLETE | {"radius": 0.3}
    ),
    "shapes-classify": Preset(
        "3-D shapes of a folder, or of an archive with --data npz, by 256 points drawn anew in every step and their "
        "descriptors; labelled particles, sized for two CPU cores",
        _SHAPES_CLASSIFY,
    ),
    "scans-classify": Preset(
        "the same of scanned objects that stand upright: turned about the last axis alone, and changed more",
        {**_SHAPES_CLASSIFY, "rotation": "axis", "scaling": 0.2, "jitter": 0.1, "noise": 0.03},
    ),
    "shapes-complete": Preset(
        "3-D shapes without two clusters, 256 points of each and their descriptors, sized for two CPU cores: labelled "
        "particles solved to a residual of 1e-2",
        {
            **_SHAPES,
            **_LABELLED_COMPLETION,
            "max_points": 256,
            "scales": 4,
            "x_layers": 2,
            "num_heads": 4,
            "radius": 0.3,
            "growth": 1.45,
            "dim_label": 3,
            "eval_every": 4,
            "epochs": 16,
        },
    ),
}
