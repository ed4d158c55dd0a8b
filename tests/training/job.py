"""A process of a training job, as torchrun starts it: `job.py FOLDER TASK...` trains a small run of each task in
FOLDER/TASK; for the task "die" the last process ends without a word in its third step."""

import os
import sys
from pathlib import Path

import torch

from ddeq_fast.config import Config
from ddeq_fast.data.dataset import Dataset, Split, generator
from ddeq_fast.training import Trainer


def arcs(count, seed):
    """Arcs of 6 to 9 points, labelled by the side that is open."""
    clouds, labels = [], torch.arange(count) % 2
    draw = generator(seed)
    for label in labels.tolist():
        angle = torch.rand(int(torch.randint(6, 10, (), generator=draw)), generator=draw) * 3 + 3.14 * label
        clouds.append(torch.stack((angle.cos(), angle.sin()), 1))
    return Split(clouds, [torch.ones(len(cloud)) for cloud in clouds], labels)


def dataset():
    """Sizes that leave a last batch of one cloud, and three batches of evaluation."""
    return Dataset("arcs", 2, 2, arcs(25, 0), arcs(10, 1))


def settings(task):
    """Of a model in which all that is random is drawn for the whole batch."""
    sizes = {"dim_z": 8, "particles": 3, "heads": 2, "dim_lift": 4, "dim_hidden": 8, "batch_size": 8, "warmup": 3}
    solver = {"solver": "flow", "max_steps": 5, "tol": 1e-9}
    return Config(task=task, device="cpu", epochs=2, growth=1.5, **sizes, **solver)


def main(folder, *tasks):
    torch.set_num_threads(1)
    for task in tasks:
        trainer = Trainer(settings("classify" if task == "die" else task), Path(folder) / task, dataset())
        if task == "die":
            make_mortal(trainer)
        trainer.fit(progress=False)


def make_mortal(trainer):
    step = trainer.train_step

    def dying(batch):
        if trainer.step == 2 and trainer.processes.rank == trainer.processes.size - 1:
            os._exit(3)
        return step(batch)

    trainer.train_step = dying


if __name__ == "__main__":
    main(*sys.argv[1:])
