"""A process of a job that torchrun starts, `flow_job.py FOLDER`: the flows of `FLOWS`, of this and other processes."""

import sys
from pathlib import Path

import torch

from ddeq_fast import Gaussian, Riesz
from ddeq_fast.commands.cloud_flow import CloudFlow, Settings
from ddeq_fast.commands.main import main as command
from ddeq_fast.sums.backends import tree
from ddeq_fast.training.processes import Processes
from ddeq_fast.utils.optional import available

STOP = 3
SMALL = {"steps": 8, "lr": 0.5}
FLOWS = {
    "exact": (Settings(61, **SMALL), Riesz(1.5), {"backend": "dense"}),
    "lonely": (Settings(1, **SMALL), None, {"backend": "dense"}),
    "minibatch": (Settings(61, minibatch=20, **SMALL), Gaussian(1.0), {"backend": "dense"}),
    "sliced": (Settings(61, directions=5, **SMALL), None, {"backend": "sliced"}),
    "one direction": (Settings(61, directions=1, **SMALL), Gaussian(2.0), {"backend": "sliced"}),
    "tree": (Settings(900, **SMALL), None, {"backend": "tree", "tolerance": 2e-7}),
}


def target():
    """In float64, which tells a wrong sum from rounding."""
    return torch.randn(700, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5


def flow(name, processes=None):
    settings, kernel, options = FLOWS[name]
    return CloudFlow(target(), settings, kernel, **options, processes=processes)


def moved(flow, steps, path=None):
    """The flow after so many of its steps, saved there."""
    while flow.done < steps:
        flow.step()
        if flow.reports(flow.done):
            flow.note()
    if path is not None:
        flow.save(path)
    return flow


def names():
    """Of the flows that run here."""
    return [name for name in FLOWS if name != "tree" or available("ferreus_bbfmm")]


def main(folder):
    torch.set_num_threads(1)
    tree._pays = lambda x, y, kernel: True
    processes, found = Processes.join(torch.device("cpu")), {}
    for name in names():
        whole = moved(moved(flow(name, processes), STOP, folder / f"two {name}"), 8)
        rest = flow(name, processes)
        rest.restore(folder / f"one {name}")
        found[name] = [whole.x, moved(rest, 8).x, torch.tensor(whole.history)]
        found[name].append(torch.tensor([-1.0 if whole.error is None else whole.error]))
    torch.save(found, folder / f"process {processes.rank}")
    words = ["flow", "--target", folder / "target.npy", "--particles", 50, "--steps", 8, "--out", folder / "two.npy"]
    sys.exit(command([*map(str, words), "--backend", "sliced", "--quiet"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
