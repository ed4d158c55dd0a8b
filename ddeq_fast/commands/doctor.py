"""`ddeq-fast doctor`: versions, devices, which backends work and why not, optional packages."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from importlib import metadata

import torch

import ddeq_fast
from ddeq_fast.sums import backends
from ddeq_fast.sums.fields import potential_and_field
from ddeq_fast.sums.radial import Riesz
from ddeq_fast.utils import console

_OPTIONAL = {
    "triton": "Triton kernels on GPUs",
    "pykeops": "large clouds without dense matrices",
    "ferreus_bbfmm": "large clouds by trees",
    "torchdeq": "our solvers inside its models",
    "sklearn": "the digits data set",
    "safetensors": "checkpoints",
    "tqdm": "progress bars",
    "matplotlib": "pictures",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "What works on this machine: versions, devices, optional packages, and every\n"
        "backend on every device, tried on a small cloud; why not, of those that do not."
    )


def run(_: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    console.say(report(), result=True)
    return 0


def report() -> str:
    """All findings, a line each."""
    lines = [
        f"ddeq_fast {ddeq_fast.__version__}",
        f"python {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        "",
        "devices",
        f"  cpu: {platform.processor() or platform.machine()}",
    ]
    devices = ["cpu"]
    for i in range(torch.cuda.device_count()):
        devices.append(f"cuda:{i}")
        lines.append(f"  cuda:{i}: {torch.cuda.get_device_name(i)}")
    if len(devices) == 1:
        lines.append("  no CUDA device" + ("" if torch.version.cuda or torch.version.hip else ": torch is a CPU build"))
    lines += ["", "backends"]
    lines += [f"  {name} on {device}: {_try(name, device)}" for name in backends.names() for device in devices]
    lines += ["", "optional packages"]
    lines += [f"  {name}: {_version(name)} ({purpose})" for name, purpose in _OPTIONAL.items()]
    return "\n".join(lines)


def _try(name: str, device: str) -> str:
    """Whether the backend works, or why not."""
    x = torch.linspace(-1, 1, 24, device=device)[:, None]  # on a line even sliced sums are exact
    try:
        u, f = potential_and_field(x, x, Riesz(1.0), backend=name)
    except Exception as error:  # whatever is wrong with it is what is asked
        return f"no: {error}"
    expected = potential_and_field(x, x, Riesz(1.0), backend="dense")
    right = all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip((u, f), expected, strict=True))
    return "works" if right else "no: its results differ from the dense backend's"


def _version(module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return "not installed"
    try:
        return metadata.version({"sklearn": "scikit-learn"}.get(module, module))
    except metadata.PackageNotFoundError:
        return "installed"
