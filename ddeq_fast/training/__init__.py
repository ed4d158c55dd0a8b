"""Training of classifiers and completers: `Trainer(Config(...), folder).fit()`.

    config      settings, each declared once: help, group, choices, bounds
    presets     settings by name
    build       data set, model and removal that settings describe
    metrics     the table of what is measured
    tasks       inputs, loss and metrics of classification and completion
    processes   the processes of one job, which share every batch
    run         the folder of a run: read, and recognised
    records     the same folder: written, by one process alone
    loop        the trainer, which stops and resumes exactly
    pictures    curves, equilibria, completions
    gallery     a page of a run

Whatever is random is a function of the seed and the step.
"""

from ddeq_fast.training.build import load_data, make_model
from ddeq_fast.training.config import Config
from ddeq_fast.training.loop import Interrupted, Trainer, evaluate, measure_split
from ddeq_fast.training.run import BEST, CONFIG_FILE, LAST, METRICS_FILE, load_model, read_config, read_metrics
from ddeq_fast.training.tasks import TASKS, Task, make_task

__all__ = [
    "Config",
    "Trainer",
    "Interrupted",
    "evaluate",
    "measure_split",
    "load_data",
    "make_model",
    "Task",
    "TASKS",
    "make_task",
    "read_config",
    "read_metrics",
    "load_model",
    "CONFIG_FILE",
    "METRICS_FILE",
    "LAST",
    "BEST",
]
