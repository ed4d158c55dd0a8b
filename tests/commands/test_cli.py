"""The command line, run as a user does: output, exit status, pictures, one-line errors."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ddeq_fast import __version__
from ddeq_fast.commands import main as cli

SETTINGS = {"dim-z": 8, "particles": 3, "num-heads": 2, "dim-lift": 4, "dim-hidden": 8, "batch-size": 256, "epochs": 1}
TINY = [f"--{name}={value}" for name, value in SETTINGS.items()] + ["--device=cpu"]
pytest.importorskip("sklearn")


def run(*words, cwd):
    """(exit status, stdout, stderr) of the command in a process of its own."""
    done = subprocess.run(command(*words), cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def command(*words):
    return [sys.executable, "-m", "ddeq_fast.commands.main", *map(str, words)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run in runs/digits below the returned folder, and what it printed."""
    folder = tmp_path_factory.mktemp("work")
    return folder, run("train", "--data", "digits", *TINY, cwd=folder)


def test_train_tells_what_it_did(trained):
    folder, (status, out, err) = trained
    assert status == 0, err
    assert "digits: 1437 clouds, 360 held out" in out and "parameters on cpu" in out
    assert re.search(r"^  accuracy +\d+\.\d\d%$", out, re.MULTILINE) and "relative MMD residual" in out
    assert "test: loss" in err and "residual" in err
    kept = set(os.listdir(folder / "runs" / "digits"))
    assert {"config.json", "metrics.jsonl", "best.safetensors", "last.safetensors"} <= kept


def test_pictures_are_drawn(trained):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    for name in ("curves.png", "equilibrium.png"):
        image = imread(trained[0] / "runs" / "digits" / name)
        assert image.shape[0] > 400 and image.shape[1] > 800
        assert image[..., :3].std() > 0.05  # not an empty page


def test_eval_repeats_the_results_of_training(trained):
    folder, (_, out, _) = trained
    status, again, err = run("eval", "runs/digits", cwd=folder)
    assert status == 0, err
    assert "loss" in again and again in out
    status, text, _ = run("eval", "runs/digits", "--json", "--checkpoint", "best", cwd=folder)
    metrics = json.loads(text)
    assert status == 0 and metrics["checkpoint"] == "best" and 0 <= metrics["accuracy"] <= 1


def test_train_prints_its_figures_as_json(tmp_path):
    status, text, err = run("train", "--data", "digits", *TINY, "--json", cwd=tmp_path)
    assert status == 0, err
    told = json.loads(text)
    assert told["run"] == os.path.join("runs", "digits") and told["held_out"] == 360 and told["epochs"] == 1
    _, again, _ = run("eval", told["run"], "--json", cwd=tmp_path)
    again = json.loads(again)
    assert told["loss"] == pytest.approx(again["loss"], rel=1e-5) and told["accuracy"] == again["accuracy"]


def test_a_second_run_needs_resume(trained):
    folder, _ = trained
    status, _, err = run("train", *TINY, cwd=folder)
    assert status == 2
    assert err == (
        f"ddeq-fast: error: {os.path.join('runs', 'digits')} already holds a run: "
        "continue it with --resume, or choose another --run\n"
    )


def test_interrupted_and_resumed(tmp_path):
    """Ctrl-C saves and exits with 130; --resume goes on to the end."""
    log = tmp_path / "runs" / "digits" / "metrics.jsonl"
    words = ["train", *TINY, "--epochs=60", "--quiet"]
    process = subprocess.Popen(command(*words), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "saved in runs" in err and "continue with --resume" in err and "Traceback" not in err
    before = log.read_text()
    status, _, err = run("train", "--resume", "--lr", "0.1", cwd=tmp_path)
    assert status == 2 and err == "ddeq-fast: error: --lr cannot be changed by --resume: a run keeps its settings\n"
    process = subprocess.Popen(command("train", "--resume", "--quiet"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(log.read_text()) <= len(before):
        time.sleep(0.05)
    assert log.read_text().startswith(before)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 130


@pytest.mark.parametrize(
    "words, message",
    [
        (["train", "--data", "letters"], "data must be one of digits"),
        (["train", "--num-heads", "7"], "num_heads must divide dim_z = 64, got 7"),
        (["train", "--device", "tpu9"], "device 'tpu9' cannot be used: "),
        (["train", "--resume"], "runs/digits holds no run: runs/digits/config.json is missing"),
        (["eval", "nowhere"], "nowhere holds no run: nowhere/config.json is missing"),
    ],
)
def test_errors_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"ddeq-fast: error: {message}") and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [[], ["fly"], ["train", "--epochs", "many"], ["eval"]])
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and "usage: ddeq-fast" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["fly"], []], ids=lambda words: " ".join(words) or "none")
def test_only_commands_load_what_they_need(words):
    """Help and mistakes come at once: neither torch nor numpy is imported for them."""
    script = (
        "import sys; from ddeq_fast.commands.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print(*({'torch', 'numpy'} & set(sys.modules)), sep=',', end='.')"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.stdout.endswith("\n.") or done.stdout == ".", done.stdout


def test_every_command_has_help(capsys):
    for name, (_, text) in cli.COMMANDS.items():
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        out = capsys.readouterr().out
        assert stop.value.code == 0 and out.startswith(f"usage: ddeq-fast {name}")
        with pytest.raises(SystemExit):
            cli.main(["--help"])
        assert text in " ".join(capsys.readouterr().out.split())


def test_settings_are_listed_in_groups_with_choices_and_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for group in ("data", "network", "solver", "gradient", "optimisation", "run"):
        assert f" {group} settings: --" in out
    for part in ("--task {classify,complete} ", "--start {random,even} ", "(default: phantom)", "--num-heads N "):
        assert part in out


def test_version_and_help_name_everything(capsys):
    for words, expected in [(["--version"], __version__), (["--help"], "doctor"), (["train", "--help"], "--jacobian")]:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0 and expected in capsys.readouterr().out
