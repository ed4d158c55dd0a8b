"""Training of classifiers and completers: `Trainer(Config(...), folder).fit()`."""

from ddeq_fast.training.build import load_data, make_model
from ddeq_fast.training.config import Config
from ddeq_fast.training.loop import Interrupted, Trainer, evaluate
from ddeq_fast.training.run import BEST, CONFIG_FILE, LAST, METRICS_FILE, load_model, read_config, read_metrics
from ddeq_fast.training.tasks import TASKS, Task, make_task

__all__ = [
    "Config",
    "Trainer",
    "Interrupted",
    "evaluate",
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
