"""Training of classifiers and completers: `Trainer(config, folder).fit()`."""

from ddeq_fast.training.loop import Interrupted, Trainer, brief, choose_device, convergence_in_metrics, evaluate
from ddeq_fast.training.run import BEST, CONFIG, LAST, METRICS, load_model, read_config, read_metrics
from ddeq_fast.training.tasks import TASKS, Task, make

__all__ = [
    "Trainer",
    "Interrupted",
    "evaluate",
    "brief",
    "choose_device",
    "convergence_in_metrics",
    "read_config",
    "read_metrics",
    "load_model",
    "Task",
    "TASKS",
    "make",
    "CONFIG",
    "METRICS",
    "LAST",
    "BEST",
]
