"""`ddeq-fast doctor`: right backends, wrong ones, missing packages and how to get them."""

import json
import subprocess
import sys

import pytest
import torch

from ddeq_fast import __version__
from ddeq_fast.commands import backend_checks, doctor
from ddeq_fast.commands.main import main
from ddeq_fast.sums import backends
from ddeq_fast.sums.backends import dense


class Skewed:
    """Dense sums, times one and a bit: `potential` and `field` in three dimensions alone."""

    def __init__(self, potential, field):
        self.factors = potential, field

    def unsupported(self, x, y, kernel):
        return None

    def evaluate(self, x, y, v, kernel, potential, field):
        parts = dense.evaluate(x, y, v, kernel, potential, field)
        factors = self.factors if x.shape[-1] == 3 else (1.0, 1.0)
        return tuple(part if part is None else part * factor for part, factor in zip(parts, factors, strict=True))


class Broken(Skewed):
    """It says that it can."""

    def evaluate(self, *_):
        raise RuntimeError("no such instruction\nat 0x0")


@pytest.fixture
def quick(registries, monkeypatch):
    """Only the dense backend, and what a test registers."""
    for name in backends.names():
        if name != "dense":
            monkeypatch.delitem(backends.registry._REGISTRY, name)


def test_what_works(quick, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for part in (
        f"ddeq_fast {__version__}",
        f"torch {torch.__version__}",
        "dense on cpu: works; relative errors up to ",
    ):
        assert part in out
    assert "optional packages" in out and "safetensors: " in out


def test_every_backend_is_tried_in_one_dimension_and_three(capsys):
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] and told["packages"]["torch"]["version"] and "cpu" in told["devices"]
    found = {tried["backend"]: tried for tried in told["backends"] if tried["device"] == "cpu"}
    assert list(found) == backends.names()
    assert found["dense"]["works"] and found["sliced"]["works"]
    assert 0 < found["dense"]["errors"]["3"]["field"] < 1e-5 < found["sliced"]["errors"]["3"]["field"]
    for tried in found.values():
        assert tried["works"] or (tried["reason"] and not tried["able"])
        assert not tried["works"] or list(tried["errors"]) == ["1", "3"]
    assert not found["ring"]["able"] and "torchrun" in found["ring"]["reason"]


def test_trees_are_tried_on_a_cloud_that_they_do_not_sum_exactly():
    pytest.importorskip("ferreus_bbfmm")
    errors = backend_checks.check("tree", "cpu")["errors"]
    assert 1e-6 < errors["3"]["field"] < 1e-3


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (Skewed(1.01, 1.0), "its potential in dimension 3 is off by 0.01, more than 0.0001"),
        (Skewed(1.0, 0.99), "its field in dimension 3 is off by 0.01, more than 0.0001"),
        (Skewed(1.0, float("nan")), "its field in dimension 3 is off by nan, more than 0.0001"),
        (Broken(1.0, 1.0), "it fails: RuntimeError: no such instruction"),
    ],
)
def test_a_backend_with_wrong_sums_is_an_error(quick, capsys, backend, reason):
    backends.register("ours", backend)
    assert main(["doctor"]) == 1
    assert f"\n  ours on cpu: WRONG: {reason}\n" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["healthy"] and told["backends"][-1]["reason"] == reason


def test_what_is_missing_comes_with_the_command_that_brings_it(quick, monkeypatch, capsys):
    available = doctor.available
    monkeypatch.setattr(doctor, "available", lambda name: name not in ("pykeops", "sklearn") and available(name))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert '\n  pykeops: not installed (large clouds without dense matrices): pip install "ddeq_fast[keops]"\n' in out
    assert '\n  sklearn: not installed (the digits data set): pip install "ddeq_fast[data]"\n' in out


WITHOUT = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {missing} else found(name, *rest)
sys.modules.update(dict.fromkeys({missing}))
from ddeq_fast.commands.main import main
sys.exit(main(sys.argv[1:]))
"""


def without(*missing, words):
    """The command in a process where these modules cannot be found."""
    script = [sys.executable, "-c", WITHOUT.format(missing=missing), *words]
    return subprocess.run(script, capture_output=True, text=True)


def test_without_torch():
    done = without("torch", "tqdm", words=["doctor"])
    assert done.returncode == 1 and done.stderr == ""
    assert "\ntorch is not installed, and nothing works without it: pip install torch\n" in done.stdout
    assert '\n  tqdm: not installed (progress bars): pip install "ddeq_fast[train]"\n' in done.stdout
    assert "backends" not in done.stdout.partition("optional packages")[0]
    told = json.loads(without("torch", words=["doctor", "--json"]).stdout)
    assert told["packages"]["torch"] == {
        "version": None, "needed": True, "purpose": "everything", "install": "pip install torch"
    }  # fmt: skip


@pytest.mark.parametrize("command", ["train", "explain"])
def test_other_commands_say_that_torch_is_missing(command):
    done = without("torch", words=[command])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("ddeq-fast: error: ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith(": pip install torch; see ddeq-fast doctor\n")
