"""The profile of training steps: its parts, and that its clocks are taken off again."""

import pytest

from ddeq_fast.training import Trainer
from ddeq_fast.training.config import Config

train = pytest.importorskip("bench.train", reason="no benchmarks beside the tests")

SIZES = {"dim_z": 8, "num_heads": 2, "dim_lift": 4, "dim_hidden": 8, "particles": 3, "batch_size": 16}


@pytest.mark.parametrize("task", ["classify", "complete"])
def test_parts_of_a_step(task, tmp_path):
    trainer = Trainer(Config(task=task, epochs=1, **SIZES), tmp_path / "run")
    row = train.measure(trainer, 1, 3, profiled=True)
    assert trainer.step == 4 and row["evaluations"] >= 1
    expected = {"data", "inputs of the task", "encode X", "solve", "penalty", "loss", "backward pass", "optimizer"}
    assert expected <= row["parts"].keys() and all(spent > 0 for spent in row["parts"].values())
    text = train.report("small", row)
    assert "clouds a second" in text and "| backward pass |" in text
    before = trainer.task.loss
    assert not hasattr(before, "__wrapped__") and before.__func__ is type(trainer.task).loss


def test_without_a_profile_there_are_no_parts(tmp_path):
    trainer = Trainer(Config(epochs=1, **SIZES), tmp_path / "run")
    row = train.measure(trainer, 1, 2, profiled=False)
    assert row["parts"] == {} and row["step_seconds"] > 0 and "|" not in train.report("small", row)
