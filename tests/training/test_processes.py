"""Jobs of two processes started by torchrun: the results of one process, one writer, and an end when one dies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
from safetensors.torch import load_file

from ddeq_fast.training import read_metrics

JOB = Path(__file__).with_name("job.py")


RUNS = (
    "classify",
    "complete",
    "dropout",
    "complete-dropout",
    "even",
    "ift",
    "alone",
    "drawn",
    "moved",
    "auto",
    "decay",
)


def launch(*words, processes=2):
    """(exit status, stderr) of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", JOB]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=100)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of what one process trained, and what two did."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    sys.path.insert(0, str(JOB.parent))
    try:
        import job
    finally:
        sys.path.remove(str(JOB.parent))
    job.main(one, *RUNS, "bfloat16")
    status, err = launch(two, *RUNS, "bfloat16")
    assert status == 0, err
    return one, two


def test_processes_leave_their_group_before_python_ends(runs):
    """A finished job once aborted as Python ended: threads of a group that outlives it are the likely cause."""
    assert [(runs[1] / f"left-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_as_one_does(runs, run):
    """To a millionth in float64: metrics, weights and, of the largest, gradients as the optimizer remembers them. The
    last batch of an epoch has a single cloud, and so leaves one process without any."""
    one, two = (load_file(folder / run / "last.safetensors") for folder in runs)
    assert one.keys() == two.keys()
    names = [name for name in one if name.endswith(":exp_avg")]
    largest = max(one[name].abs().max() for name in names)
    assert names and all((one[name] - two[name]).abs().max() <= 1e-6 * largest for name in names)
    weights = [name for name in one if one[name].dtype == torch.float64 and ":exp_avg" not in name]
    assert weights and all((one[name] - two[name]).abs().max() <= 1e-6 for name in weights)
    logs = [read_metrics(folder / run) for folder in runs]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"split", "seconds"}:
            assert theirs[key] == pytest.approx(ours[key], rel=1e-6, abs=1e-9), (key, ours["step"])


def test_in_bfloat16_losses_agree_to_its_rounding(runs):
    """Equal in the first step; after it rounding of 2^-8, which Adam makes whole steps of, adds up."""
    ours, theirs = ([entry["loss"] for entry in read_metrics(folder / "bfloat16")] for folder in runs)
    assert theirs[0] == pytest.approx(ours[0], rel=1e-6)
    assert theirs == pytest.approx(ours, rel=1e-2)


SHARED = "cannot be trained by 2 processes with the results of one: "


@pytest.mark.parametrize(
    ("run", "what"),
    [
        ("bilevel", f"{SHARED}backward='bilevel'"),
        ("layers", f"{SHARED}head.0 is a Dropout"),
        ("device", "device must be cuda or auto in a job of several processes, a GPU for each, got 'cuda:0'"),
    ],
)
def test_what_depends_on_the_share_is_refused(tmp_path, run, what):
    status, err = launch(tmp_path, run)
    assert status != 0 and what in err
    assert not (tmp_path / run).exists()


def test_a_process_that_dies_ends_the_job(tmp_path):
    status, err = launch(tmp_path, "die")
    assert status != 0 and "exitcode" in err
    assert json.loads((tmp_path / "die" / "config.json").read_text())["task"] == "classify"
    assert len(read_metrics(tmp_path / "die")) == 2
