"""Run folders: killed at any write, shared by two, damaged, of other settings or data."""

import errno
import json
import os
import shutil
import sys

import pytest
import torch

from ddeq_fast.commands import evaluate, train
from ddeq_fast.data.dataset import Dataset, Split
from ddeq_fast.training import BEST, CONFIG_FILE, LAST, METRICS_FILE, Trainer, load_model, read_metrics
from ddeq_fast.training.run import LOCK
from ddeq_fast.utils import checkpoints, files, locks


class Killed(BaseException):
    """Ends a run at once, as a kill would."""


def weights(folder):
    return checkpoints.load(folder / LAST)[0]


def test_a_run_killed_at_any_write_goes_on_exactly(rings, small, tmp_path, monkeypatch):
    config = small(epochs=2, dropout=0.2)
    Trainer(config, tmp_path / "whole", rings).fit(progress=False)
    write, fold = files.write_atomically, tmp_path / "run"
    for kill in range(1, 9):
        shutil.rmtree(fold, ignore_errors=True)
        count = 0

        def killed(path, content, kill=kill):
            nonlocal count
            count += 1
            if count == kill:
                (path.parent / f".{path.name}.12345678").write_bytes(content[:9])
                raise Killed
            write(path, content)

        monkeypatch.setattr(files, "write_atomically", killed)
        try:
            Trainer(config, fold, rings).fit(progress=False)
            assert count < kill
        except Killed:
            pass
        monkeypatch.setattr(files, "write_atomically", write)
        if (fold / CONFIG_FILE).exists():
            Trainer.resume(fold, rings).fit(progress=False)
        else:
            Trainer(config, fold, rings).fit(progress=False)
        ours, theirs = weights(fold), weights(tmp_path / "whole")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert [e["step"] for e in read_metrics(fold)] == [e["step"] for e in read_metrics(tmp_path / "whole")]
        assert sorted(os.listdir(fold)) == sorted([BEST, CONFIG_FILE, LAST, METRICS_FILE])


def test_a_full_disk_ends_training_with_the_file_named(rings, small, tmp_path, monkeypatch):
    trainer = Trainer(small(), tmp_path / "run", rings)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "there")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device: 'there'"):
        patch.setattr(files, "write_atomically", full)
        trainer.fit(progress=False)
    assert Trainer.resume(tmp_path / "run", rings).fit(progress=False)["split"] == "test"


def test_a_second_writer_is_refused(rings, small, tmp_path):
    trainer, folder = Trainer(small(), tmp_path / "run", rings), tmp_path / "run"
    other = Trainer.resume(folder, rings)
    with locks.alone(folder / LOCK, "it"):
        for start in (trainer.fit, lambda: Trainer.resume(folder, rings)):
            with pytest.raises(locks.InUse, match=rf"^run folder {folder} is in use by process {os.getpid()} on "):
                start()
    trainer.fit(progress=False)
    with pytest.raises(ValueError, match=r"last.safetensors has been written by another process meanwhile"):
        other.fit(progress=False)


def test_what_can_be_neither_continued_nor_lost_is_named(rings, small, tmp_path):
    folder = tmp_path / "run"
    Trainer(small(epochs=1), folder, rings).fit(progress=False)
    (folder / LAST).unlink()
    with pytest.raises(FileExistsError, match=r"holds best.safetensors of a run, but no last.safetensors: choose"):
        Trainer(small(), folder, rings)
    (folder / BEST).unlink()
    (folder / METRICS_FILE).write_text("")
    Trainer(small(), folder, rings)


def test_damage_is_named(rings, small, tmp_path):
    folder = tmp_path / "run"
    Trainer(small(epochs=1), folder, rings).fit(progress=False)
    files = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, METRICS_FILE, LAST)}
    tensors, info = checkpoints.load(folder / LAST)
    for change, message in [
        ({"step": None}, "after step None"),
        ({"step": 99}, "after step 99 of a run of 6"),
        ({"step": True}, "after step True"),
        ({"best": "x"}, "its best is 'x'"),
        ({"seconds": float("nan")}, "its seconds is nan"),
        ({"config": None}, "must hold an object"),
        ({"config": {**info["config"], "lr": 1.0}}, "with other settings than config.json: lr 1.0, not 0.003"),
        ({"data": {}}, "its description of the data is wrong"),
    ]:
        checkpoints.save(folder / LAST, tensors, {**info, **change})
        with pytest.raises(ValueError, match=rf"last\.safetensors.*{message}"):
            Trainer.resume(folder, rings)
    (folder / LAST).write_bytes(files[LAST])
    lines = files[METRICS_FILE]
    for name, content in [
        *(
            (METRICS_FILE, line + lines)
            for line in (b"{}\n", b"5\n", b'{"step": 1}\n', b"\xff\n", b"[" * 100000 + b"\n")
        ),
        *((METRICS_FILE, lines + line) for line in (b'{"step": \xff', lines.splitlines(True)[0], b"no\n")),
        *(
            (CONFIG_FILE, text)
            for text in (b"", b"\xff\xfe", b"[" * 100000, b'{"lr": 1%s}' % (b"0" * 400), b'{"lr": null}')
        ),
        (CONFIG_FILE, b'{"epochs": 1%s}' % (b"0" * 400)),
    ]:
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            Trainer.resume(folder, rings)
        (folder / name).write_bytes(files[name])
    (folder / METRICS_FILE).unlink()
    with pytest.warns(UserWarning, match=r"metrics.jsonl lacks steps before 6"):
        assert Trainer.resume(folder, rings).fit(progress=False)["split"] == "test"


def test_other_data_are_not_mixed_in(rings, small, tmp_path):
    Trainer(small(epochs=1), tmp_path / "run", rings).fit(progress=False)
    train, test = rings.train, rings.test
    turned = Split([-cloud for cloud in train.points], train.weights, train.labels)
    other = Split(train.points, train.weights, 1 - train.labels)
    for data, what in [((turned, test), "training"), ((other, test), "training"), ((train, train), "held-out")]:
        with pytest.raises(ValueError, match=f"of a run on other data than rings: its {what} clouds differ"):
            Trainer.resume(tmp_path / "run", Dataset("rings", 2, 2, *data))
    near = Split([cloud * (1 + 1e-6) for cloud in train.points], train.weights, train.labels)
    Trainer.resume(tmp_path / "run", Dataset("rings", 2, 2, near, test))


def test_best_of_another_run_is_refused(rings, small, tmp_path):
    for seed in (0, 1):
        Trainer(small(epochs=1, seed=seed), tmp_path / str(seed), rings).fit(progress=False)
    shutil.copy(tmp_path / "0" / BEST, tmp_path / "1" / BEST)
    with pytest.raises(
        ValueError, match=r"best.safetensors is of a run with other settings than config.json: seed 0, no"
    ):
        load_model(tmp_path / "1", "best", rings)


@pytest.mark.parametrize("task", ["classify", "complete"])
def test_pictures_of_few_labels(rings, small, tmp_path, task):
    plots = pytest.importorskip("ddeq_fast.training.pictures")
    pytest.importorskip("matplotlib")
    one = Split(rings.test.points[1:2], rings.test.weights[1:2], rings.test.labels[1:2])
    settings = {"solver": "flow", "max_steps": 2, "jacobian": 0.0} if task == "complete" else {}
    trainer = Trainer(small(task=task, epochs=1, **settings), tmp_path / "run", Dataset("r", 2, 2, rings.train, one))
    trainer.fit(progress=False)
    for path, draw in plots.pictures(trainer).items():
        draw()
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_picture_that_fails_is_a_line(rings, small, tmp_path, monkeypatch, capsys):
    from ddeq_fast.utils import drawing

    pytest.importorskip("matplotlib")
    trainer = Trainer(small(epochs=1), tmp_path / "run", rings)
    trainer.fit(progress=False)
    monkeypatch.setattr(drawing, "figure", lambda *_: 1 / 0)
    train.draw(trainer)
    assert "curves.png: ZeroDivisionError" in capsys.readouterr().err


class Gone:
    """A stream whose reader has left."""

    encoding = "ascii"

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    flush = fileno = isatty = lambda self: self.write("")


@pytest.mark.parametrize("stream", [None, Gone()])
def test_nobody_needs_to_listen(rings, small, tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    result = Trainer(small(epochs=1), tmp_path / "run", rings).fit()
    evaluate.show(result)
    assert json.loads((tmp_path / "run" / CONFIG_FILE).read_text())["epochs"] == 1


def test_completion_of_whole_clouds_is_shown(capsys):
    evaluate.show({"chamfer": 0.5, "partial_chamfer": 0.0, "mmd": 0.1, "partial_mmd": 0.2, "loss": 1.0})
    assert "Chamfer distance                 0.50000, the partial's is 0\n" in capsys.readouterr().out
