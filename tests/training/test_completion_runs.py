"""Runs that complete clouds: the command line, pictures and page, exact continuation, evaluation."""

import os
import re
import sys

import pytest
import torch

from ddeq_fast import training
from ddeq_fast.commands import main as cli
from ddeq_fast.solvers import quiet
from ddeq_fast.training import Interrupted, Trainer, gallery
from ddeq_fast.training.config import Config
from ddeq_fast.training.presets import PRESETS

BRIEF = {"task": "complete", "solver": "flow", "max_steps": 3, "flow_lr": 5.0, "jacobian": 0.0, "growth": 1.5}
CPU = torch.device("cpu")


def entries(folder):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in training.read_metrics(folder)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run of the command line, and what it printed."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("work") / "run"
    sizes = {
        "dim-z": 8,
        "num-heads": 2,
        "dim-lift": 4,
        "dim-hidden": 8,
        "batch-size": 256,
        "epochs": 1,
        "device": "cpu",
    }
    words = {"intensity": "none", **sizes, **{name.replace("_", "-"): value for name, value in BRIEF.items()}}
    with pytest.MonkeyPatch.context() as patch, (folder.parent / "out").open("w+") as out:
        patch.setattr(sys, "stdout", out)
        settings = [f"--{name}={value}" for name, value in words.items()]
        assert cli.main(["train", "--run", str(folder), "--quiet", *settings]) == 0
        out.seek(0)
        return folder, out.read()


def test_results_stand_beside_those_of_the_partial_clouds(trained, capsys):
    folder, out = trained
    form = r"^  Chamfer distance +0\.\d+, (\d+\.\d\d) of the partial input's own 0\.\d+\n  squared MMD +0\.\d+, "
    assert re.search(form, out, re.MULTILINE)
    assert cli.main(["eval", str(folder)]) == 0
    again = capsys.readouterr().out.splitlines()
    assert [line for line in again if "partial" in line] == [line for line in out.splitlines() if "partial" in line]
    entry = entries(folder)[-1]
    assert float(re.search(form, out, re.MULTILINE)[1]) == round(entry["chamfer"] / entry["partial_chamfer"], 2)


def test_pictures_and_page(trained, capsys):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    folder, _ = trained
    for name in ("curves.png", "completion.png", "flow.png"):
        image = imread(folder / name)
        assert min(image.shape[:2]) > 400 and image[..., :3].std() > 0.05
    assert cli.main(["gallery", str(folder)]) == 0
    page = folder / "gallery" / "index.html"
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    assert set(re.findall(r'src="(.*?)"', text)) == set(os.listdir(page.parent)) - {"index.html"} != set()
    assert "http" not in text and "<script" not in text and "Completion of digits" in text
    assert f"{entries(folder)[-1]['chamfer']:.5f}" in text and '<tr class="changed"><td>growth</td>' in text
    assert gallery.write(folder, folder.parent / "elsewhere").parent == folder.parent / "elsewhere"


def test_a_page_needs_a_run_with_results(rings, small, tmp_path, capsys):
    assert cli.main(["gallery", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    Trainer(small(), tmp_path / "run", rings)
    with pytest.raises(ValueError, match="has no evaluation yet: train an epoch first"):
        gallery.write(tmp_path / "run")


def test_a_run_learns_and_keeps_the_best(rings, small, tmp_path):
    trainer = Trainer(small(epochs=8, lr=1e-2, **BRIEF), tmp_path / "run", rings)
    trainer.fit(progress=False)
    log = entries(tmp_path / "run")
    train, test = ([e for e in log if e["split"] == split] for split in ("train", "test"))
    assert sum(e["loss"] for e in train[-6:]) < 0.8 * sum(e["loss"] for e in train[:6])
    assert trainer.best == min(e["chamfer"] for e in test)
    assert len({e["partial_chamfer"] for e in test}) == 1  # the same partial clouds every time
    assert len({e["mmd"] for e in train}) == len(train)  # others every step
    best = training.evaluate(trainer.task, training.load_model(tmp_path / "run", "best", rings), rings.test, CPU)
    assert best["chamfer"] == trainer.best


def test_an_interrupted_run_continues_exactly(rings, small, tmp_path):
    config = small(jitter=0.1, remove="fraction", entropy=0.01, **BRIEF)
    expected = Trainer(config, tmp_path / "whole", rings).fit(progress=False)
    broken = Trainer(config, tmp_path / "broken", rings)
    step = broken.train_step

    def interrupted(batch):
        if broken.step == 7:
            os.kill(os.getpid(), 2)
        return step(batch)

    broken.train_step = interrupted
    with pytest.raises(Interrupted):
        broken.fit(progress=False)
    assert Trainer.resume(tmp_path / "broken", rings).fit(progress=False) == expected
    assert entries(tmp_path / "broken") == entries(tmp_path / "whole")


def test_evaluation_does_not_depend_on_the_batches(rings, small, tmp_path):
    trainer = Trainer(small(**BRIEF), tmp_path / "run", rings)
    one, other = (training.evaluate(trainer.task, trainer.model, rings.test, CPU, batch_size=size) for size in (3, 20))
    assert one == pytest.approx(other, rel=1e-4)


def test_entropy_spreads_the_new_points(rings, small, tmp_path):
    """It is taken off the loss with its weight, over the new points alone."""
    batch = rings.train.batch(torch.arange(6))
    values = {}
    for weight in (0.0, 0.5):
        task = training.make_task(small(entropy=weight, **BRIEF))
        inputs = task.inputs(batch, 3)
        torch.manual_seed(0)
        model = training.make_model(small(**BRIEF), 2, 2)
        with quiet():
            output = task.run(model, inputs)
        values[weight], parts = task.loss(output, inputs)
        assert parts == {"mmd": pytest.approx(values[0.0].item())}
    new = [output.points[i][(output.weights[i] > 0) & ~output.observed[i]] for i in range(6)]
    gaps = [torch.cdist(x, x)[~torch.eye(len(x), dtype=bool)].view(len(x), -1) for x in new]
    entropy = [-((-gap.square() / 2).exp().sum(1) / len(gap) + 1e-10).log().mean() for gap in gaps]
    assert torch.allclose(values[0.0] - values[0.5], 0.5 * torch.stack(entropy).mean(), rtol=1e-4)


def test_the_learning_rate_falls_in_steps(rings, small, tmp_path):
    config = small(epochs=7, lr=0.1, warmup=0, schedule="step", step_epochs=3, step_factor=0.5)
    trainer = Trainer(config, tmp_path / "run", rings)
    rates = [trainer.learning_rate(epoch * trainer.steps_per_epoch) for epoch in range(7)]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025])
    assert trainer.learning_rate(3 * trainer.steps_per_epoch - 1) == pytest.approx(0.1)


def test_another_model_trains_in_the_same_loop(rings, small, tmp_path):
    """One without an equilibrium: it has no metrics of a solve."""
    from ddeq_fast.models import Classification

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(4, 2)

        def forward(self, x, weights):
            features = torch.cat((x, x.square()), 2) * weights[..., None]
            return Classification(self.head(features.sum(1) / weights.sum(1, keepdim=True)), None)

    options = {"dataset": rings, "build": lambda config, dataset: Mean()}
    result = Trainer(small(jacobian=0.0, epochs=30, lr=0.1), tmp_path / "run", **options).fit(progress=False)
    assert result["accuracy"] >= 0.9 and "evaluations" not in result
    assert Trainer.resume(tmp_path / "run", **options).fit(progress=False)["accuracy"] == result["accuracy"]


def test_presets():
    """All are settings; the paper's have the parameters of the original code's models."""
    configs = {name: Config(**preset.settings) for name, preset in PRESETS.items()}
    assert configs["digits"].dim_label > 0 and all(preset.text for preset in PRESETS.values())
    sizes = {"mnist-classify-paper": 773_114, "mnist-complete-paper": 1_185_008}
    for name, expected in sizes.items():
        assert sum(p.numel() for p in training.make_model(configs[name], 2, 10).parameters()) == expected


def test_presets_are_overridden_and_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--preset", "mnist-complete", "--root", "nowhere", "--num-heads", "3"]) == 2
    assert "num_heads must divide dim_z" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in PRESETS)
    out = " ".join(out.split())
    assert all(preset.text in out for preset in PRESETS.values())


def test_tensorboard(rings, small, tmp_path, monkeypatch):
    trainer = Trainer(small(epochs=1), tmp_path / "run", rings)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'torch.utils.tensorboard is needed .* "ddeq_fast\[tensorboard\]"'):
        trainer.fit(progress=False, tensorboard=True)
    written = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            written.append((name, step))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type(sys)("tensorboard"))
    sys.modules["torch.utils.tensorboard"].SummaryWriter = Writer
    trainer.fit(progress=False, tensorboard=True)
    assert {("loss/train", 1), ("accuracy/test", 6)} <= set(written)
