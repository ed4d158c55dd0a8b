"""Jobs of two processes started by torchrun: the results of one process, one writer, and an end when one dies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
from safetensors.torch import load_file

from ddeq_fast.training import read_metrics

JOB = Path(__file__).with_name("job.py")


RUNS = ("classify", "complete", "dropout", "complete-dropout", "even", "ift", "auto")


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


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_as_one_does(runs, run):
    """The last batch of an epoch has a single cloud, and so leaves one process without any. Gradients are compared as
    the optimizer remembers them: some are all rounding, which it scales up to steps like any others."""
    one, two = (load_file(folder / run / "last.safetensors") for folder in runs)
    assert one.keys() == two.keys()
    names = [name for name in one if name.endswith(":exp_avg")]
    largest = max(one[name].abs().max() for name in names)
    assert names and all((one[name] - two[name]).abs().max() <= 1e-3 * largest for name in names)
    logs = [read_metrics(folder / run) for folder in runs]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"split", "seconds"}:
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-6), (key, ours["step"])


def test_in_bfloat16_losses_agree_to_its_rounding(runs):
    """Equal in the first step; after it rounding of 2^-8, which Adam makes whole steps of, adds up."""
    ours, theirs = ([entry["loss"] for entry in read_metrics(folder / "bfloat16")] for folder in runs)
    assert theirs[0] == pytest.approx(ours[0], rel=1e-6)
    assert theirs == pytest.approx(ours, rel=1e-2)


@pytest.mark.parametrize(("run", "what"), [("bilevel", "backward='bilevel'"), ("layers", "head.0 is a Dropout")])
def test_what_depends_on_the_share_is_refused(tmp_path, run, what):
    status, err = launch(tmp_path, run)
    assert status != 0 and "cannot be trained by 2 processes with the results of one" in err and what in err
    assert not (tmp_path / run).exists()


def test_a_process_that_dies_ends_the_job(tmp_path):
    status, err = launch(tmp_path, "die")
    assert status != 0 and "exitcode" in err
    assert json.loads((tmp_path / "die" / "config.json").read_text())["task"] == "classify"
    assert len(read_metrics(tmp_path / "die")) == 2
