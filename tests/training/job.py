"""A process of a training job, as torchrun starts it: `job.py FOLDER RUN...` trains small runs of `RUNS` in
FOLDER/RUN; of the run "die" the last process ends without a word in its third step."""

import atexit
import os
import sys
from pathlib import Path

import torch
from torch import distributed

from ddeq_fast.data.dataset import Dataset, Split, generator
from ddeq_fast.training import Trainer, make_model
from ddeq_fast.training.config import Config


def arcs(count, seed, dtype):
    """Arcs of 6 to 9 points, labelled by the side that is open."""
    clouds, labels = [], torch.arange(count) % 2
    draw = generator(seed)
    for label in labels.tolist():
        angle = torch.rand(int(torch.randint(6, 10, (), generator=draw)), generator=draw) * 3 + 3.14 * label
        clouds.append(torch.stack((angle.cos(), angle.sin()), 1).to(dtype))
    return Split(clouds, [cloud.new_ones(len(cloud)) for cloud in clouds], labels)


def dataset(dtype):
    """Sizes that leave a last batch of one cloud, and three batches of evaluation."""
    return Dataset("arcs", 2, 2, arcs(25, 0, dtype), arcs(10, 1, dtype))


RUNS = {
    "classify": {},
    "complete": {"task": "complete"},
    "die": {},
    "dropout": {"dropout": 0.4, "jacobian": 0.0, "cross_layers": 2, "weight_decay": 0.3, "flow_decay": 0.9},
    "complete-dropout": {"task": "complete", "dropout": 0.4, "remove": "fraction", "entropy": 0.1, "chamfer": 0.5},
    "even": {"task": "complete", "start": "even", "batching": "by-length", "flow_gradient": "witness"},
    "ift": {"backward": "ift", "solver": "anderson", "tol": 1e-2, "dropout": 0.2, "clip": 0.05},
    "drawn": {"drawn_points": 4, "jitter": 0.2},
    "moved": {"rotation": "all", "scaling": 0.2, "noise": 0.1, "jitter": 0.0},
    "alone": {"batch_size": 1, "jitter": 0.3, "flow_gradient": "witness", "flow_decay": 0.8, "epochs": 1},
    "auto": {"solver": "auto", "max_steps": 40, "tol": 1e-3, "backward": "ift", "dropout": 0.5, "batch_size": 12},
    "decay": {"phantom_steps": 3, "schedule": "step", "step_epochs": 1, "max_points": 7},
    "bfloat16": {"precision": "bfloat16", "tol": 1e-2, "dropout": 0.2, "jacobian": 0.0},
    "bilevel": {"backward": "bilevel"},
    "layers": {},
    "device": {"device": "cuda:0"},
}


def settings(run):
    """Of a tiny model."""
    sizes = {"dim_z": 8, "particles": 3, "num_heads": 2, "dim_lift": 4, "dim_hidden": 8, "batch_size": 8, "warmup": 3}
    solver = {"solver": "flow", "max_steps": 5, "tol": 1e-9}
    return Config(**{"device": "cpu", "epochs": 2, "growth": 1.5, **sizes, **solver, **RUNS[run]})


def plain(config, dataset):
    """The model of the settings in the precision of the data."""
    return make_model(config, dataset.dim, dataset.classes).to(dataset.train.points[0].dtype)


def with_layer(config, dataset):
    """The same with a layer that draws for the share of one process alone."""
    model = plain(config, dataset)
    model.head = torch.nn.Sequential(torch.nn.Dropout(0.5), model.head)
    return model


def main(folder, *runs):
    torch.set_num_threads(1)
    for run in runs:
        # Float64 tells from rounding what is wrong, however much solves amplify it; autocast leaves it alone.
        data = dataset(torch.float32 if run == "bfloat16" else torch.float64)
        trainer = Trainer(settings(run), Path(folder) / run, data, with_layer if run == "layers" else plain)
        if run == "die":
            make_mortal(trainer)
        trainer.fit(progress=False)


def make_mortal(trainer):
    step = trainer.train_step

    def dying(batch):
        if trainer.step == 2 and trainer.processes.rank == trainer.processes.size - 1:
            os._exit(3)
        return step(batch)

    trainer.train_step = dying


def tell(folder):
    """Write down whether the group of processes had been left when Python ended."""
    (Path(folder) / f"left-{os.environ['RANK']}").write_text(str(not distributed.is_initialized()))


if __name__ == "__main__":
    atexit.register(tell, sys.argv[1])  # the first to be registered is the last to be called
    main(*sys.argv[1:])
