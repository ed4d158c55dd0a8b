"""`ddeq-fast doctor`: versions, devices, which backends work and why not, packages and how to get them.

It imports torch only where that is installed: that it is not is one of its findings.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from typing import Any, NamedTuple

import ddeq_fast
from ddeq_fast.commands import arguments
from ddeq_fast.utils import console, threads
from ddeq_fast.utils.optional import available, install


class _Package(NamedTuple):
    """purpose: what it is for; extra: what installs it, None for what is always needed; name: where pip has another."""

    purpose: str
    extra: str | None
    name: str | None = None


_PACKAGES = {
    "torch": _Package("everything", None),
    "numpy": _Package("everything", None),
    "triton": _Package("Triton kernels on GPUs", "triton"),
    "pykeops": _Package("large clouds without dense matrices", "keops"),
    "ferreus_bbfmm": _Package("large clouds by trees", "large", "ferreus-bbfmm"),
    "scipy": _Package("fast nearest points, earth mover's distance", "metrics"),
    "torchdeq": _Package("our solvers inside its models", "torchdeq"),
    "sklearn": _Package("the digits data set", "data", "scikit-learn"),
    "safetensors": _Package("checkpoints", "train"),
    "tqdm": _Package("progress bars", "train"),
    "matplotlib": _Package("pictures", "plots"),
    "tensorboard": _Package("metrics of a training for TensorBoard", "tensorboard"),
    "shtab": _Package("completion of commands in a shell", "completion"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "What works on this machine: versions, devices, packages and how to get those that\n"
        "are missing, and every backend on every device: potential and field of small clouds\n"
        "against exact sums in float64; why not, of those that do not. The exit status is 1\n"
        "if torch or numpy is missing, or a backend that could run gives wrong results."
    )
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    found = findings()
    console.say(json.dumps(found) if options.json else report(found), result=True)
    return 0 if found["healthy"] else 1


def findings() -> dict[str, Any]:
    """All that the command tells, as JSON has it."""
    packages = {module: _package(module) for module in _PACKAGES}
    found: dict[str, Any] = {
        "ddeq_fast": ddeq_fast.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": None,
        "waiting": threads.waiting(),
        "devices": {},
        "hint": None,
        "backends": [],
        "packages": packages,
        "healthy": False,
    }
    if any(package["version"] is None for package in packages.values() if package["needed"]):
        return found
    import torch

    from ddeq_fast.commands.backend_checks import check_all

    packages["torch"]["version"] = torch.__version__  # unlike that of the wheel, it tells the build
    found["threads"] = torch.get_num_threads()
    found["devices"] = {"cpu": platform.processor() or platform.machine()}
    found["devices"] |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    if len(found["devices"]) == 1:
        build = "" if torch.version.cuda or torch.version.hip else ": torch is a CPU build"
        found["hint"] = f"no CUDA device{build}"
    found["backends"] = check_all(list(found["devices"]))
    found["healthy"] = all(tried["works"] or not tried["able"] for tried in found["backends"])
    return found


def _package(module: str) -> dict[str, Any]:
    """Its version, None if it is missing, and how to get it."""
    purpose, extra, name = _PACKAGES[module]
    version = None
    if available(module):
        try:
            version = metadata.version(name or module)
        except metadata.PackageNotFoundError:
            version = "unknown"
    how = f"pip install {name or module}" if extra is None else install(extra)
    return {"version": version, "needed": extra is None, "purpose": purpose, "install": how}


def report(found: dict[str, Any]) -> str:
    """The findings in words, a line each."""
    lines = [f"ddeq_fast {found['ddeq_fast']}", f"python {found['python']} on {found['system']}"]
    packages = found["packages"]
    missing = [module for module, package in packages.items() if package["needed"] and package["version"] is None]
    for module in missing:
        lines.append(f"{module} is not installed, and nothing works without it: {packages[module]['install']}")
    if not missing:
        lines += [f"torch {packages['torch']['version']}, {found['threads']} threads"]
        lines += [f"  {found['waiting']}; {threads.ADVICE}"] * (found["threads"] > 1)
        lines += ["", "devices"]
        lines += [f"  {device}: {name}" for device, name in found["devices"].items()]
        lines += [f"  {found['hint']}"] * (found["hint"] is not None)
        lines += ["", "backends"]
        lines += [f"  {tried['backend']} on {tried['device']}: {_outcome(tried)}" for tried in found["backends"]]
    lines += ["", "optional packages"]
    lines += [_line(module, package) for module, package in packages.items() if not package["needed"]]
    return "\n".join(lines)


def _outcome(tried: dict[str, Any]) -> str:
    if not tried["works"]:
        return f"{'WRONG' if tried['able'] else 'no'}: {tried['reason']}"
    errors = ", ".join(f"{max(parts.values()):.1g} (d = {d})" for d, parts in tried["errors"].items())
    return f"works; relative errors up to {errors}"


def _line(module: str, package: dict[str, Any]) -> str:
    if package["version"] is None:
        return f"  {module}: not installed ({package['purpose']}): {package['install']}"
    return f"  {module}: {package['version']} ({package['purpose']})"
