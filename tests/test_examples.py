"""The examples, run with small sizes: they do what they are for."""

import importlib.util
import json
import subprocess
import sys

import pages
import pytest
import torch

from references import ROOT

FOLDER = ROOT / "examples"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))


def main(name, *args, **options):
    """What the example's `main` returns."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.random.fork_rng(devices=[]):
        return module.main(*args, **options)


def test_own_map_learns():
    first, last = main("own_map", steps=25, clouds=16, points=20)
    assert last < 0.3 * first


@pytest.mark.usefixtures("registries")
def test_own_solver_converges_and_is_faster_than_plain_steps():
    found = main("own_solver", samples=4)
    assert found["anderson"] < found["heavy-ball"] < found["plain steps"] < 200


def test_a_generator_comes_near_its_data(capsys):
    before, after = main("generator", steps=60, batch=64)
    assert 0 < after < 0.2 * before
    assert "Chamfer distance" in capsys.readouterr().out


def test_a_fitted_cloud_is_nearer_than_a_drawn_one(tmp_path):
    out = tmp_path / "few.npz"
    drawn, fitted = main("fit_cloud", out=out, points=6, steps=60)
    assert fitted < 0.7 * drawn
    from ddeq_fast.data import load_points

    assert load_points(out).shape == (6, 2)


def test_a_file_is_completed(tmp_path):
    before, after = main("complete_file", tmp_path)
    assert after < 0.6 * before and {path.name for path in tmp_path.iterdir()} == {"partial.ply", "whole.ply"}


def test_warm_starts_save_evaluations(capsys):
    cold, warm = main("warm_starts", frames=5, points=20)
    assert warm < 0.8 * cold
    assert capsys.readouterr().out.count("\n") == 6


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells, one after another, as Python: it has no magics."""
    pytest.importorskip("matplotlib").use("Agg")
    cells = json.loads((FOLDER / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 4
    monkeypatch.chdir(tmp_path)
    names = None
    for i, cell in enumerate(code):
        names = pages.run(cell, f"tour.ipynb, cell {i + 1}", names)
    spread = {name: float(names[name].std(0).mean()) for name in ("plain", "many")}
    assert spread["plain"] < 1e-2 * spread["many"]  # one point without labels, a distribution with them


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets over addresses that it may not have")
def test_ring_sums_of_two_processes():
    words = ["--standalone", "--nproc-per-node=2", FOLDER / "ring_sums.py", "--points", "31"]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Two processes write to one pipe: a line may begin in the middle of another.
    assert "process 0, 16 of 31 targets" in done.stdout and "process 1, 15 of 31 targets" in done.stdout


def test_every_example_is_shown_and_run():
    shown = pages.text_of("docs/examples.md")
    source = (ROOT / "tests" / "test_examples.py").read_text(encoding="utf-8")
    assert SCRIPTS
    for name in SCRIPTS:
        assert f'--8<-- "examples/{name}"' in shown
        assert f'"{name.removesuffix(".py")}"' in source or f'"{name}"' in source
