"""Classes of a run: their weights in the loss, their accuracies by name, and data sets that people have."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ddeq_fast.commands import main as cli
from ddeq_fast.data.dataset import Dataset, Split
from ddeq_fast.solvers import quiet
from ddeq_fast.training import Config, Trainer, load_data, make_task
from ddeq_fast.training.tasks import Labelled


def split(labels):
    points = [torch.randn(4, 2, generator=torch.Generator().manual_seed(i)) for i in range(len(labels))]
    return Split(points, [torch.ones(4)] * len(labels), torch.tensor(labels))


@pytest.fixture
def uneven():
    """Six clouds of the first class, two of the second, none of the third in training."""
    return Dataset("uneven", 2, 3, split([0] * 6 + [1] * 2), split([0, 1, 2]), ("many", "few", "none"))


def loss(task, logits, labels):
    return task.loss(SimpleNamespace(logits=logits), Labelled(None, torch.tensor(labels)))[0].item()


def test_weights_make_classes_count_alike(uneven):
    plain, balanced = (make_task(Config(class_weights=kind), uneven) for kind in ("none", "balanced"))
    logits, labels = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), [0] * 6 + [1] * 2
    each = F.cross_entropy(logits, torch.tensor(labels), reduction="none")
    assert loss(plain, logits, labels) == pytest.approx(each.mean().item())
    assert loss(balanced, logits, labels) == pytest.approx((each[:6].mean() + each[6:].mean()).item() / 2)
    # A batch's loss is a mean over samples, so that batches add up to the whole.
    parts = [6 * loss(balanced, logits[:6], labels[:6]), 2 * loss(balanced, logits[6:], labels[6:])]
    assert sum(parts) / 8 == pytest.approx(loss(balanced, logits, labels))
    assert loss(balanced, torch.zeros(1, 3), [2]) == pytest.approx(math.log(3))


def test_weights_need_the_data(uneven):
    task = make_task(Config(class_weights="balanced"))
    with pytest.raises(ValueError, match=r"^class_weights are of a data set: make the task of one"):
        loss(task, torch.zeros(1, 3), [0])


def test_weights_change_the_training(uneven, small, tmp_path):
    runs = [Trainer(small(class_weights=kind), tmp_path / kind, uneven) for kind in ("none", "balanced")]
    losses = [trainer.fit(progress=False)["loss"] for trainer in runs]
    assert losses[0] != losses[1]


def test_balanced_accuracy_does_not_depend_on_the_batches(uneven, small, tmp_path):
    trainer = Trainer(small(epochs=1), tmp_path / "run", uneven)
    found = trainer.fit(progress=False)["balanced_accuracy"]
    with torch.no_grad(), quiet():
        batch = uneven.test.batch(torch.arange(3))
        hits = trainer.model.eval()(*batch.clouds).logits.argmax(1) == batch.labels
    assert found == pytest.approx(hits.double().mean().item())


NAMES = [
    (["a", "b", "c"], TypeError, r"names must be a tuple of strings, got \["),
    (("a", "b", 3), TypeError, r"names must be a tuple of strings, got \("),
    (("a", "b"), ValueError, r"names must be 3 different ones, got \('a', 'b'\)$"),
    (("a", "b", "a"), ValueError, r"names must be 3 different ones, got \('a', 'b', 'a'\)$"),
]


@pytest.mark.parametrize("names, error, message", NAMES)
def test_names_are_as_many_as_classes(uneven, names, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Dataset("uneven", 2, 3, uneven.train, uneven.test, names)


TINY = ["--dim-z=8", "--particles=3", "--num-heads=2", "--dim-lift=4", "--dim-hidden=8", "--epochs=1", "--device=cpu"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of two classes of clouds, one of them damaged."""
    monkeypatch.setenv("DDEQ_FAST_CACHE", "none")
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for name, stretch in (("flat", (1, 1, 0)), ("long", (1, 0, 0))):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(5):
            np.savetxt(tmp_path / "mine" / name / f"{i}.xyz", draw.normal(size=(20, 3)) * stretch)
    (tmp_path / "mine" / "long" / "4.xyz").write_text("1 2\n3\n")
    return tmp_path / "mine"


def test_a_folder_is_trained_on_and_its_classes_are_named(root, capsys):
    words = ["train", "--data", "folder", "--root", str(root), "--max-points", "15", *TINY]
    assert cli.main(words) == 2
    assert "long/4.xyz, line 2: 1 values, but line 1 has 2" in capsys.readouterr().err
    assert cli.main([*words, "--skip-damaged", "--class-weights", "balanced", "--data-seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert "1 of 10 files are damaged and left out, first" in err
    assert "mine: 7 clouds, 2 held out" in out or "mine: 8 clouds, 1 held out" in out
    assert "balanced accuracy" in out and "accuracy of the classes" not in out
    assert cli.main(["eval", "runs/folder", "--device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [
        line.split()
        for line in lines[lines.index("accuracy of the classes, and how many of their clouds are held out:") :]
    ]
    assert [row[0] for row in rows[1:]] == ["flat", "long"]
    assert cli.main(["eval", "runs/folder", "--device=cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["classes"]) == ["flat", "long"]
    measured = [entry["accuracy"] for entry in found["classes"].values() if entry["clouds"]]
    assert found["balanced_accuracy"] == pytest.approx(sum(measured) / len(measured))


def test_settings_that_a_data_set_does_not_have_are_refused(root):
    with pytest.raises(TypeError, match=r"^data set 'digits' has no option test_share: its options are "):
        load_data(Config(test_share=0.5))
    with pytest.raises(TypeError, match=r"^data set 'npz' has no option sampling: "):
        load_data(Config(data="npz", root=str(root), sampling="surface"))
    options = {"normalise": "box", "coordinates": 2, "skip_damaged": True, "test_share": 0.4, "data_seed": 1}
    dataset = load_data(Config(data="folder", root=str(root), **options))
    assert dataset.dim == 2 and dataset.train.points[0].abs().max() == 1


@pytest.mark.parametrize("value", [1, "yes", None])
def test_a_flag_is_a_flag(value):
    with pytest.raises(TypeError, match=r"^skip_damaged must be "):
        Config(skip_damaged=value)
