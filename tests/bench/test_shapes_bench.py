"""The command that trains on arrays of 3-D clouds: results, confusion, pictures, and going on."""

import json

import numpy as np
import pytest
import torch

shapes = pytest.importorskip("bench.shapes", reason="no benchmarks beside the tests")
for module in ("safetensors", "tqdm", "matplotlib"):
    pytest.importorskip(module)

TINY = {
    "dim_z": 16,
    "particles": 3,
    "num_heads": 2,
    "dim_lift": 4,
    "dim_hidden": 24,
    "drawn_points": 12,
    "max_points": 20,
}


@pytest.fixture
def folder(tmp_path):
    """Balls and rods in arrays, as `--data npz` reads them."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 32), ("val", 9)):
        labels = np.arange(count) % 2
        points = generator.normal(size=(count, 24, 3)) * np.where(labels[:, None, None] == 1, [1, 0.1, 0.1], 1)
        arrays |= {f"{part}_points": points.astype("float32"), f"{part}_labels": labels}
        arrays[f"{part}_counts"] = np.full(count, 24)
    arrays["classes"] = np.array(["ball", "rod"])
    for name in ("shapes", "lidar"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / f"{name}.npz", **arrays)
    return tmp_path


@pytest.fixture
def bench(folder, monkeypatch, capsys):
    presets = {
        name: preset._replace(settings={**preset.settings, **TINY}) for name, preset in shapes.compare.PRESETS.items()
    }
    monkeypatch.setattr(shapes.compare, "PRESETS", presets)

    def run(*arguments):
        places = [("--root", folder), ("--runs", folder / "runs"), ("--out", folder), ("--pictures", folder)]
        given = [str(word) for pair in places for word in pair]
        status = shapes.main([*given, "--epochs", "5", *arguments])
        return status, capsys.readouterr().out

    return run


def test_lidar(bench, folder, monkeypatch):
    status, table = bench("--only", "lidar", "--models", "ddeq", "pointnet", "--seeds", "2")
    result = json.loads((folder / "lidar-cpu.json").read_text())
    assert status == 0 and "| DDEQ |" in table and "| PointNet |" in table
    assert [row["model"] for row in result["rows"]] == 2 * ["DDEQ"] + 2 * ["PointNet"]
    assert result["settings"]["root"] == "" and result["class_names"] == ["ball", "rod"]
    confusion = torch.tensor(result["confusion"])
    assert confusion.sum(1).tolist() == [5, 4]
    assert int(confusion.diagonal().sum()) / 9 == pytest.approx(result["rows"][0]["accuracy"])
    curves = [curve for seeds in result["curves"].values() for curve in seeds]
    for row, curve in zip(result["rows"], curves, strict=True):
        assert curve[-1][1] == row["accuracy"]
    assert (folder / "lidar.png").stat().st_size > 5000
    # Runs that are there are read.
    monkeypatch.setattr(shapes.training.Trainer, "train_step", pytest.fail)
    assert bench("--only", "lidar", "--models", "ddeq", "pointnet", "--seeds", "2") == (0, table)


def test_completion_has_no_confusion(bench, folder):
    assert bench("--only", "shapes-completion", "--models", "pcn", "--seeds", "1")[0] == 0
    result = json.loads((folder / "shapes-completion-cpu.json").read_text())
    assert "confusion" not in result and list(result["curves"]) == ["PCN, which makes the whole cloud"]
    assert (folder / "shapes-completion.png").stat().st_size > 5000


def test_a_folder_without_the_arrays_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        shapes.main(["--root", str(tmp_path), "--runs", str(tmp_path / "runs")])
    assert f"--root {tmp_path} holds no shapes/shapes.npz, lidar/lidar.npz" in capsys.readouterr().err
