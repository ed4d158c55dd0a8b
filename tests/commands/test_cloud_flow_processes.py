"""Flows shared between two processes: the results of one, whoever began them, and one writer."""

import subprocess
import sys

import flow_job
import numpy as np
import pytest
import torch

from ddeq_fast.commands.main import main
from ddeq_fast.sums.backends import tree

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its processes talk by gloo")


def launch(*words):
    """(exit status, stdout, stderr) of two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", flow_job.__file__]
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Folder, results of each of two processes, and what they printed."""
    folder = tmp_path_factory.mktemp("flows")
    np.save(folder / "target.npy", flow_job.target().numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "_pays", lambda x, y, kernel: True)
        for name in flow_job.names():
            flow_job.moved(flow_job.flow(name), flow_job.STOP, folder / f"one {name}")
    status, out, err = launch(folder)
    assert status == 0, err
    return folder, [torch.load(folder / f"process {rank}") for rank in range(2)], out


@pytest.mark.parametrize("name", flow_job.names())
def test_two_processes_move_as_one_does(job, name, monkeypatch):
    monkeypatch.setattr(tree, "_pays", lambda x, y, kernel: True)
    folder, found, _ = job
    whole = flow_job.moved(flow_job.flow(name), 8)
    rest = flow_job.flow(name)
    rest.restore(folder / f"two {name}")
    assert rest.done == flow_job.STOP
    continued = flow_job.moved(rest, 8)
    tolerance = {"rtol": 0, "atol": 1e-5 if name == "tree" else 1e-9}
    for x in (found[0][name][0], found[0][name][1], continued.x):
        torch.testing.assert_close(x, whole.x, **tolerance)
    torch.testing.assert_close(found[0][name][2], torch.tensor(whole.history), rtol=1e-4, atol=1e-6)
    assert torch.equal(found[0][name][0], found[1][name][0]), "the processes stay together"
    error = float(found[0][name][3])
    if whole.error is None:
        assert error == -1
    else:
        assert error == pytest.approx(whole.error, rel=1e-3, abs=1e-9) and float(found[1][name][3]) == -1


def test_the_command_has_one_writer(job):
    folder, _, out = job
    assert out.count("50 particles, 8 steps, 750 charges a step, sliced in 2 processes") == 1
    assert out.count("; sliced, field off by ") == out.count("wrote ") == 1
    words = ["flow", "--target", str(folder / "target.npy"), "--particles", "50", "--steps", "8", "--backend", "sliced"]
    assert main([*words, "--quiet", "--out", str(folder / "one.npy")]) == 0
    np.testing.assert_allclose(np.load(folder / "two.npy"), np.load(folder / "one.npy"), rtol=0, atol=1e-4)
    assert not [path for path in folder.iterdir() if path.name.startswith(".two") or "checkpoint" in path.name]
