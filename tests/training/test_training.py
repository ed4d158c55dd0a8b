"""Training: progress, exact continuation, interruption, and folders in bad order."""

import io
import json
import os
import signal
import sys

import pytest
import torch

from ddeq_fast import training
from ddeq_fast.solvers import quiet
from ddeq_fast.training import BEST, CONFIG_FILE, LAST, METRICS_FILE, Interrupted, Trainer
from ddeq_fast.training.config import Config
from ddeq_fast.utils.validation import choose_device


def entries(folder):
    """The run's metrics without the times, which no two runs share."""
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in training.read_metrics(folder)]


def interrupt_after(trainer, step, number=signal.SIGINT):
    """Send the process a signal in the middle of a step."""
    whole_step = trainer.train_step

    def interrupted(batch):
        if trainer.step == step:
            os.kill(os.getpid(), number)
        return whole_step(batch)

    trainer.train_step = interrupted


def test_a_run_learns_and_leaves_its_records(rings, small, tmp_path):
    trainer = Trainer(small(epochs=15), tmp_path / "new" / "run", rings)
    result = trainer.fit(progress=False)
    assert result["accuracy"] >= 0.9
    assert sorted(os.listdir(trainer.folder)) == sorted([BEST, CONFIG_FILE, LAST, METRICS_FILE])
    assert training.read_config(trainer.folder) == trainer.config
    log = entries(trainer.folder)
    train, test = ([e for e in log if e["split"] == split] for split in ("train", "test"))
    assert [e["step"] for e in train] == list(range(1, trainer.total_steps + 1))
    assert len(test) == 15 and test[-1] == {"step": trainer.total_steps, **result}
    assert max(e["accuracy"] for e in test) == trainer.best
    assert sum(e["loss"] for e in train[-6:]) < 0.5 * sum(e["loss"] for e in train[:6])
    assert all(e["worst_residual"] <= trainer.config.tol for e in test[-3:])


@pytest.mark.parametrize("progress, terminal", [(True, True), (True, False), (False, True)])
def test_a_bar_is_shown_in_terminals(rings, small, tmp_path, progress, terminal, monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", shown)
    Trainer(small(epochs=1), tmp_path / "run", rings).fit(progress)
    assert ("train: loss" in shown.getvalue()) == (progress and terminal)
    assert ("epoch   1  test: loss" in shown.getvalue()) == progress


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 11])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_continues_exactly(rings, small, tmp_path, stop, number):
    config = small(dropout=0.2, eval_every=2, save_every=2)
    whole = Trainer(config, tmp_path / "whole", rings)
    expected = whole.fit(progress=False)
    broken = Trainer(config, tmp_path / "broken", rings)
    interrupt_after(broken, stop, number)
    with pytest.raises(Interrupted, match=f"^stopped after step {stop + 1} of 18; saved in "):
        broken.fit(progress=False)
    resumed = Trainer.resume(tmp_path / "broken", rings)
    assert resumed.step == stop + 1
    torch.rand(5)  # the state of the global generator must not matter
    assert resumed.fit(progress=False) == expected
    assert entries(tmp_path / "broken") == entries(tmp_path / "whole")
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_killed_run_continues_from_its_last_checkpoint(rings, small, tmp_path):
    config = small(save_every=1)
    expected = Trainer(config, tmp_path / "whole", rings).fit(progress=False)
    killed = Trainer(config, tmp_path / "killed", rings)
    whole_step = killed.train_step

    def die(batch):
        if killed.step == 8:  # in the second epoch: steps 7 and 8 are logged but not saved
            raise MemoryError
        return whole_step(batch)

    killed.train_step = die
    with pytest.raises(MemoryError):
        killed.fit(progress=False)
    with open(tmp_path / "killed" / METRICS_FILE, "a") as file:
        file.write('{"step": 9, "spl')
    resumed = Trainer.resume(tmp_path / "killed", rings)
    assert resumed.step == 6 and entries(tmp_path / "killed")[-1]["step"] == 6
    assert resumed.fit(progress=False) == expected
    assert entries(tmp_path / "killed") == entries(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(rings, small, tmp_path):
    result = Trainer(small(), tmp_path / "run", rings).fit(progress=False)
    before = entries(tmp_path / "run")
    assert {k: v for k, v in Trainer.resume(tmp_path / "run", rings).fit(False).items() if k in result} == result
    assert entries(tmp_path / "run") == before


def test_signal_handlers_are_put_back(rings, small, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    Trainer(small(epochs=1), tmp_path / "run", rings).fit(progress=False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_seed_decides_everything(rings, small, tmp_path):
    runs = {name: Trainer(small(seed=seed), tmp_path / name, rings) for name, seed in [("a", 0), ("b", 0), ("c", 1)]}
    for i, trainer in enumerate(runs.values()):
        torch.manual_seed(i)
        trainer.fit(progress=False)
    assert entries(tmp_path / "a") == entries(tmp_path / "b") != entries(tmp_path / "c")


def test_training_leaves_the_global_generator_alone(rings, small, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Trainer(small(epochs=1, dropout=0.5), tmp_path / "run", rings).fit(progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_is_loaded_as_it_was_evaluated(rings, small, tmp_path):
    trainer = Trainer(small(), tmp_path / "run", rings)
    result = trainer.fit(progress=False)
    model = training.load_model(tmp_path / "run", "last", rings)
    assert not model.training
    task, cpu = trainer.task, torch.device("cpu")
    assert {"split": "test", **training.evaluate(task, model, rings.test, cpu)} == result
    best = training.evaluate(task, training.load_model(tmp_path / "run", "best", rings), rings.test, cpu)
    assert best["accuracy"] == trainer.best


def test_evaluation_does_not_depend_on_the_batches(rings, small, tmp_path):
    trainer = Trainer(small(epochs=5), tmp_path / "run", rings)
    trainer.fit(progress=False)
    arguments = trainer.task, trainer.model, rings.test, torch.device("cpu")
    one, other = (training.evaluate(*arguments, batch_size=size) for size in (3, 20))
    for key in ("loss", "accuracy", "converged"):  # residuals below the tolerance are left to rounding
        assert one[key] == pytest.approx(other[key], rel=1e-3), key


def test_the_learning_rate_rises_and_falls(rings, small, tmp_path):
    trainer = Trainer(small(epochs=10, lr=0.1, warmup=4), tmp_path / "run", rings)
    rates = [trainer.learning_rate(step) for step in range(trainer.total_steps + 1)]
    assert rates[:5] == sorted(rates[:5]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert max(rates) == pytest.approx(0.1, rel=0.02) and rates[-1] == pytest.approx(0, abs=1e-12)


def test_a_diverging_run_stops_with_a_reason(rings, small, tmp_path):
    trainer = Trainer(small(), tmp_path / "run", rings)
    with torch.no_grad():
        trainer.model.head.weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"^loss is (nan|inf) at step 0: try a smaller lr$"):
        trainer.fit(progress=False)


def test_a_run_is_not_overwritten(rings, small, tmp_path):
    Trainer(small(), tmp_path / "run", rings)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(FileExistsError, match="already holds a run: continue it with --resume, or choose another"):
        Trainer(small(seed=1), tmp_path / "run", rings)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_folders_in_bad_order_are_named(rings, small, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: .*config.json is missing"):
        Trainer.resume(tmp_path / "none", rings)
    Trainer(small(), tmp_path / "run", rings)
    good = (tmp_path / "run" / LAST).read_bytes()
    for bad in (good[: len(good) // 2], b"", b"nonsense" * 100):
        (tmp_path / "run" / LAST).write_bytes(bad)
        with pytest.raises(ValueError, match=r"last.safetensors is damaged or no checkpoint of ddeq_fast: "):
            Trainer.resume(tmp_path / "run", rings)
    (tmp_path / "run" / LAST).unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*last.safetensors"):
        Trainer.resume(tmp_path / "run", rings)
    (tmp_path / "run" / LAST).write_bytes(good)
    (tmp_path / "run" / METRICS_FILE).write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not JSON"):
        Trainer.resume(tmp_path / "run", rings)
    (tmp_path / "run" / METRICS_FILE).write_text("")
    other = json.loads((tmp_path / "run" / CONFIG_FILE).read_text())
    (tmp_path / "run" / CONFIG_FILE).write_text(json.dumps({**other, "dim_z": 16}))
    with pytest.raises(ValueError, match=r"last.safetensors does not fit the model: ddeq"):
        Trainer.resume(tmp_path / "run", rings)


def test_an_unusable_device_is_named():
    for name in ("tpu9", "cuda:99"):
        with pytest.raises(ValueError, match=f"^device '{name}' cannot be used: "):
            choose_device(name)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"dim_z": 0}, ValueError, "dim_z must be at least 1, got 0"),
        ({"dim_z": 31}, ValueError, "num_heads must divide dim_z = 31, got 2"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer, got float"),
        ({"lr": -1.0}, ValueError, r"lr must lie in \[1e-12, inf\), got -1.0"),
        ({"lr": float("nan")}, ValueError, r"lr must lie in \[1e-12, inf\), got nan"),
        ({"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"data": "letters"}, ValueError, "data must be one of digits.*; got 'letters'"),
        ({"solver": "newton"}, ValueError, "solver must be one of anderson, auto, flow; got 'newton'"),
        ({"task": "segment"}, ValueError, "task must be one of classify, complete; got 'segment'"),
        ({"remove": "half"}, ValueError, "remove must be one of clusters, fraction; got 'half'"),
        ({"growth": 1.0}, ValueError, r"growth must lie in \[1.001, inf\), got 1.0"),
        ({"max_points": -1}, ValueError, "max_points must be at least 0, got -1"),
        ({"precision": "float16"}, ValueError, "precision must be one of bfloat16, float32; got 'float16'"),
        ({"backward": "none"}, ValueError, "backward must be one of bilevel, ift, phantom; got 'none'"),
        ({"device": 3}, TypeError, "device must be a string, got int"),
    ],
)
def test_bad_settings(small, change, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        small(**change)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "here: Expecting property name"),
        ("[1]", "here: must hold an object, got list"),
        ('{"dimz": 3}', "here: has unknown settings: dimz"),
        ('{"dim_z": "3"}', "here: dim_z must be an integer, got str"),
    ],
)
def test_bad_config_files(text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Config.from_json(text, "here")


def test_config_survives_json(small):
    config = small(lr=0.3, solver="flow", backward="ift")
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"solver": "flow"},
        {"solver": "flow", "flow_gradient": "witness", "flow_decay": 0.9},
        {"solver": "anderson"},
        {"backward": "ift"},
        {"phantom_steps": 3},
        {"jacobian": 0.0},
        {"batching": "by-length"},
        {"precision": "bfloat16", "tol": 0.05},
    ],
)
def test_every_kind_of_run_trains(rings, small, tmp_path, changes):
    result = Trainer(small(epochs=1, **changes), tmp_path / "run", rings).fit(progress=False)
    assert 0 <= result["accuracy"] <= 1 and result["evaluations"] >= 1


def test_most_steps_bound_the_default_solver_as_a_whole():
    config = Config(max_steps=7, tol=1e-9, dim_z=8, num_heads=2, dim_hidden=8, dim_lift=4)
    model = training.make_model(config, 2, 3)
    x = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), quiet():
        info = model(x).equilibrium.info
    assert info.evaluations.tolist() == [8] * 3
