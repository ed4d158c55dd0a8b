"""Flows that were killed or stopped: the same end and picture, and no checkpoint of another or a damaged one."""

import numpy as np
import pytest
import torch

from ddeq_fast.commands import cloud_pictures
from ddeq_fast.commands.cloud_flow import CloudFlow, Settings
from ddeq_fast.commands.main import main
from ddeq_fast.utils import checkpoints, locks

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")


@pytest.fixture
def target():
    return torch.randn(60, 3, generator=torch.Generator().manual_seed(0))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kill", [3, 5, 8])
@pytest.mark.parametrize("ending", [".png", ".gif"])
def test_a_killed_flow_ends_as_if_nothing_had_happened(target, tmp_path, monkeypatch, kill, ending):
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "t.npy", target.numpy())
    words = ["flow", "--target", str(tmp_path / "t.npy"), "--particles", "40", "--steps", "8", "--backend", "dense"]
    words += ["--checkpoint-every", "2", "--quiet"]
    whole, part = ([*words, "--out", str(tmp_path / f"{name}.npy")] for name in ("whole", "part"))
    assert main([*whole, "--picture", str(tmp_path / f"whole{ending}")]) == 0
    step = CloudFlow.step

    def killed(flow):
        step(flow)
        if flow.done == kill:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CloudFlow, "step", killed)
        main(part)  # no picture was asked for yet
    assert main([*part, "--resume", "--picture", str(tmp_path / f"part{ending}")]) == 0
    for name in (".npy", ending):
        assert (tmp_path / f"part{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.suffix == ".checkpoint"]


def test_the_same_size_is_not_the_same_target(target, tmp_path):
    CloudFlow(target, Settings(20), backend="dense").save(tmp_path / "a")
    with pytest.raises(ValueError, match="a is of another flow: hash of the target '"):
        CloudFlow(-target, Settings(20), backend="dense").restore(tmp_path / "a")
    with pytest.raises(ValueError, match="a is of another flow: backend 'dense', not 'sliced'"):
        CloudFlow(target, Settings(20), backend="sliced").restore(tmp_path / "a")
    with pytest.raises(ValueError, match=r"dtype 'torch.float32', not 'torch.float64'"):
        CloudFlow(target.double(), Settings(20), backend="dense").restore(tmp_path / "a")
    flow = CloudFlow(target, Settings(20))
    flow.restore(tmp_path / "a")
    assert flow.backend == "dense"


def test_damage_is_named(target, tmp_path):
    flow = CloudFlow(target, Settings(20), backend="dense")
    flow.note()
    flow.look()
    flow.save(tmp_path / "a")
    tensors, info = checkpoints.load(tmp_path / "a")
    for values, change in [
        ({}, {"done": 201}),
        ({}, {"done": "1"}),
        ({}, {"of": None}),
        ({}, {"history": [[3, 1.0]]}),
        ({}, {"history": 5}),
        ({"x": torch.zeros(3)}, {}),
        ({"velocity": torch.full((20, 3), torch.nan)}, {}),
        ({"generator": torch.zeros(3, dtype=torch.uint8)}, {}),
        ({"frame.7000": torch.zeros(3, 2)}, {}),
        ({"frame.0": torch.zeros(3, 3)}, {}),
    ]:
        checkpoints.save(tmp_path / "b", {**tensors, **values}, {**info, **change})
        with pytest.raises(ValueError, match=r"/b is (damaged|no checkpoint of a flow)"):
            CloudFlow(target, Settings(20), backend="dense").restore(tmp_path / "b")


def test_outputs_are_checked_before_the_work(target, tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "t.npy", target.numpy())
    (tmp_path / "folder.npy").mkdir()
    words = ["flow", "--target", str(tmp_path / "t.npy"), "--particles", "9", "--steps", "2", "--backend", "dense"]
    for out, message in [("t.npy", "is the target"), ("folder.npy", "is a folder")]:
        assert main([*words, "--out", str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err
    with locks.alone(tmp_path / ".o.npy.lock", "it"):
        assert main([*words, "--out", str(tmp_path / "o.npy")]) == 2
        assert "o.npy is in use by process" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "O.NPY")]) == 0 and np.load(tmp_path / "O.NPY").shape == (9, 3)
    monkeypatch.setattr(cloud_pictures, "draw", lambda *_: 1 / 0)
    pytest.importorskip("matplotlib")
    assert main([*words, "--out", str(tmp_path / "o.npy"), "--picture", str(tmp_path / "o.png")]) == 0
    assert "no picture" in capsys.readouterr().err and (tmp_path / "o.npy").exists()
