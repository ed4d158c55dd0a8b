"""The command that compares networks: settings, equal training, its table."""

import json
import os
import signal

import pytest
import torch

from ddeq_fast.clouds import PointClouds
from ddeq_fast.data.dataset import Dataset, Split, generator
from ddeq_fast.distances.completion import f_score
from problems import rings_and_discs

compare = pytest.importorskip("bench.compare", reason="no benchmarks beside the tests")
completed = pytest.importorskip("bench.completed", reason="no benchmarks beside the tests")

from ddeq_fast.training import Trainer, make_task, read_metrics  # noqa: E402
from ddeq_fast.training.config import Config  # noqa: E402

for module in ("safetensors", "tqdm"):
    pytest.importorskip(module)

TINY = {"dim_z": 16, "particles": 3, "num_heads": 2, "dim_lift": 4, "dim_hidden": 24, "batch_size": 32, "threads": 1}


@pytest.fixture(scope="module")
def rings():
    return Dataset("rings", 2, 2, *(rings_and_discs(count, seed, (12, 21), 0.7) for seed, count in enumerate((64, 32))))


@pytest.fixture
def bench(rings, monkeypatch, capsys):
    """bench(*arguments) -> (status, output): the command on rings, with models that are small."""
    presets = {name: preset._replace(settings={**preset.settings, **TINY}) for name, preset in compare.PRESETS.items()}
    monkeypatch.setattr(compare, "PRESETS", presets)
    monkeypatch.setattr(compare.training, "load_data", lambda config: rings)

    def run(*arguments):
        status = compare.main([*arguments, "--epochs", "1", "--device", "cpu", "--quiet"])
        return status, capsys.readouterr().out

    return run


@pytest.mark.parametrize("task", ["classify", "complete"])
def test_the_command_compares_models_trained_alike(bench, tmp_path, task):
    file, runs = tmp_path / "all.json", tmp_path / "runs"
    status, table = bench("--task", task, "--root", str(tmp_path), "--json", str(file), "--runs", str(runs))
    content = json.loads(file.read_text())
    assert content["settings"]["root"] == ""  # a folder of one machine is no result
    rows, names = content["rows"], compare.names(Config(task=task))
    assert status == 0 and len(rows) == len(names) and content["machine"]["threads"] == 1
    configs = [json.loads((runs / name / "config.json").read_text()) for name in names]
    different = {key for config in configs for key in config if config[key] != configs[0][key]}
    assert different <= {"lr", "jacobian"}
    assert all(0.7 < row["parameters"] / rows[0]["parameters"] < 1.3 for row in rows)
    for row, config, name in zip(rows, configs, names, strict=True):
        last = read_metrics(runs / name)[-1]
        score = "accuracy" if task == "classify" else "chamfer"
        assert row[score] == last[score] and row["lr"] == config["lr"]
        assert 0 < row["step_seconds"] <= row["train_seconds"] < last["seconds"]
        assert f"| {row['model']} | {row['parameters']:,} |" in table
    # The same again from the run of DDEQ that is there now.
    status, again = bench("--ddeq", str(runs / "ddeq"), "--models", "ddeq")
    assert status == 0 and next(line for line in table.splitlines() if "DDEQ" in line) in again


def test_several_seeds(bench, tmp_path):
    file = tmp_path / "all.json"
    status, table = bench("--models", "pointnet", "--seed", "3", "--seeds", "2", "--json", str(file))
    rows = json.loads(file.read_text())["rows"]
    assert status == 0 and [row["seed"] for row in rows] == [3, 4] and len(table.split("| PointNet |")) == 2
    accuracies = torch.tensor([row["accuracy"] for row in rows], dtype=torch.float64)
    assert f"| {accuracies.mean():.2%} ± {accuracies.std():.2%} |" in table and "deviation of 2 seeds" in table


def test_descriptors_are_seen_by_a_baseline_too():
    without, seen = (set(compare.names(Config(scales=scales))) for scales in (0, 2))
    assert seen - without == {"pointnet-described"} and "pointnet" in without


def test_the_baseline_with_descriptors_has_those_of_ddeq(rings):
    config = Config(scales=2, finest=0.3)
    model = compare.MODELS["classify"]["pointnet-described"].build(config, rings, 8)
    assert model.descriptors.bandwidths == (0.3, 0.6)


def test_models_of_neighbourhoods_have_clouds_of_one_size(bench, tmp_path, monkeypatch, rings):
    """As many points as others draw, cut once, where those are less than the largest clouds have."""
    loaded = []
    monkeypatch.setattr(compare.training, "load_data", lambda config: loaded.append(config.max_points) or rings)
    models = ["--models", "pointnet", "transformer", "--runs", str(tmp_path)]
    assert bench(*models, "--drawn-points", "8", "--max-points", "15")[0] == 0
    settings = [json.loads((tmp_path / name / "config.json").read_text()) for name in models[1:3]]
    assert [(config["drawn_points"], config["max_points"]) for config in settings] == [(8, 15), (0, 8)]
    assert loaded == [15, 8]


def test_an_interrupted_comparison_is_continued(bench, tmp_path, monkeypatch):
    step = Trainer.train_step

    def interrupted(trainer, batch):
        os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert bench("--models", "pointnet", "--runs", str(tmp_path))[0] == 130
    status, table = bench("--models", "pointnet", "--runs", str(tmp_path))
    assert status == 0 and "| PointNet |" in table
    assert [entry["step"] for entry in read_metrics(tmp_path / "pointnet")] == [1, 2, 2]


def test_the_command_refuses_what_is_not_equal(bench, tmp_path, capsys):
    runs = tmp_path / "runs"
    bench("--models", "ddeq", "--runs", str(runs))
    cases = [
        (["--ddeq", str(runs / "ddeq"), "--max-points", "7"], "--max-points 7: the models must be trained as"),
        (["--ddeq", str(runs / "no")], "holds no run"),
        (
            ["--models", "pcn"],
            "--models must be one of ddeq, dgcnn, pointmlp, pointnet, pointnet-described, transformer; got 'pcn'",
        ),
        (["--models", "ddeq", "--runs", str(runs), "--seed", "1"], "holds a run with other settings"),
        (["--ddeq", str(runs / "ddeq"), "--seeds", "2"], "--seeds must be 1 where --ddeq gives a run, got 2"),
        (["--ddeq", str(runs / "ddeq"), "--preset", "digits"], "--preset must not be given where --ddeq gives a run"),
        (["--preset", "mnist-complete", "--task", "classify"], "--task must be complete with --preset mnist-complete"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit) as stop:
            bench(*arguments)
        assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "preset", "expected"),
    [
        ({}, None, {"task": "classify", "data": "digits", "dim_hidden": 128}),
        ({"data": "mnist", "task": "complete"}, None, {"task": "complete", "data": "mnist", "radius": 0.6}),
        ({"data": "npz"}, None, {"task": "classify", "data": "npz", "drawn_points": 256}),
        ({"data": "modelnet40-s"}, None, {"task": "classify", "data": "modelnet40-s", "drawn_points": 256}),
        ({"data": "folder", "task": "complete"}, None, {"task": "complete", "data": "folder", "dim_label": 3}),
        ({"data": "folder", "epochs": 3}, "digits", {"data": "folder", "epochs": 3, "drawn_points": 0}),
        ({}, "mnist-complete", {"task": "complete", "data": "mnist"}),
    ],
)
def test_settings_are_those_of_the_preset_for_the_data(asked, preset, expected):
    config = compare.settings(asked, None, preset)
    assert {name: getattr(config, name) for name in expected} == expected


def shapes(dim, sizes, count=24):
    """Balls and rods, the first `sizes` of the classes in each split, in any dimension."""
    splits = []
    for seed, (balls, rods) in enumerate(sizes):
        draw = generator(seed)
        points = torch.randn(balls + rods, count, dim, generator=draw)
        points[balls:, :, 1:] *= 0.1
        labels = torch.tensor([0] * balls + [1] * rods)
        splits.append(Split([*points], [torch.ones(count)] * len(points), labels))
    return Dataset("shapes", dim, 2, *splits)


def test_a_table_of_unbalanced_classes_has_balanced_accuracy(bench, tmp_path, monkeypatch):
    data = shapes(3, ((20, 12), (20, 8)))
    monkeypatch.setattr(compare.training, "load_data", lambda config: data)
    runs, file = tmp_path / "runs", tmp_path / "all.json"
    arguments = ("--data", "npz", "--root", "file.npz", "--models", "dgcnn", "--json", str(file))
    status, table = bench(*arguments, "--runs", str(runs))
    (row,), last = json.loads(file.read_text())["rows"], read_metrics(runs / "dgcnn")[-1]
    assert status == 0 and "| accuracy | balanced accuracy |" in table
    assert row["balanced_accuracy"] == last["balanced_accuracy"] != row["accuracy"]
    assert f"| {row['accuracy']:.2%} | {row['balanced_accuracy']:.2%} |" in table
    assert not compare.unbalanced(shapes(3, ((20, 12), (8, 5))))


@pytest.mark.parametrize("name", compare.MODELS["complete"])
def test_completers_make_as_many_points_as_ddeq_also_of_the_largest_cloud(name, rings):
    config = Config(task="complete", growth=1.45, dim_z=16, num_heads=2, dim_lift=4, dim_hidden=24)
    whole = max(rings.train.points, key=len)[None]
    completion = compare.MODELS["complete"][name].build(config, rings, 8)(whole)
    assert int((completion.weights > 0).sum()) == int(1.45 * whole.shape[1])


def test_a_table_of_completion_in_three_dimensions_has_f_scores(bench, tmp_path, monkeypatch):
    data = shapes(3, ((8, 8), (4, 4)))
    monkeypatch.setattr(compare.training, "load_data", lambda config: data)
    file, runs = tmp_path / "all.json", tmp_path / "runs"
    arguments = ("--task", "complete", "--data", "npz", "--models", "ddeq", "pointr", "--json", str(file))
    status, table = bench(*arguments, "--runs", str(runs))
    rows = json.loads(file.read_text())["rows"]
    assert status == 0 and "| squared MMD | F-score | EMD | worst residual |" in table
    partial, moved = rows[0]["partial_f_score"], rows[0]["partial_emd"]
    own = next(line for line in table.splitlines() if "partial cloud itself" in line).split("|")
    assert [cell.strip() for cell in own[5:]] == [f"{partial:.3f}", f"{moved:.4f}", "", "", "", ""]
    assert all(f"| {row['f_score']:.3f} ({row['f_score'] / partial:.2f}) |" in table for row in rows)
    assert all(row["partial_f_score"] == partial and 0 < row["f_score"] < 1 for row in rows)
    # The same from the run that is there now.
    again = bench("--ddeq", str(runs / "ddeq"), "--models", "ddeq", "--data", "npz")[1]
    assert next(line for line in table.splitlines() if "DDEQ" in line) in again


def test_f_scores_are_relative_to_the_size_of_the_whole_cloud():
    """A model that gives back what it sees scores as the partial clouds, at thresholds that grow with them."""

    class Same(torch.nn.Linear):
        def forward(self, x, weights, noise):
            return PointClouds(x, weights)

    data, config = shapes(3, ((4, 4), (4, 3))), Config(task="complete", batch_size=3, radius=0.7)
    found = completed.scores(Same(1, 1), config, data)
    assert found["f_score"] == found["partial_f_score"] < 1
    inputs = make_task(config, data).inputs(data.test.batch(torch.arange(7)), None)
    scores = []
    for cloud, mask, whole in zip(inputs.clouds.points, inputs.clouds.mask, inputs.whole.points, strict=True):
        side = float((whole.amax(0) - whole.amin(0)).max())
        scores.append(f_score(cloud[mask], whole, 0.03 * side).score)
    assert found["f_score"] == pytest.approx(float(torch.stack(scores).mean()), abs=1e-6)
    assert found["emd"] == found["partial_emd"] > 0


def test_points_stand_for_equal_shares_of_the_weight():
    points = torch.arange(12.0).view(2, 6, 1)
    weights = torch.tensor([[1.0, 1, 2, 0, 4, 0], [0, 0, 1, 1, 0, 0]])
    taken = completed.resampled(PointClouds(points, weights), 8)[..., 0]
    assert taken.tolist() == [[0, 1, 2, 2, 4, 4, 4, 4], [8] * 4 + [9] * 4]
    # A mean is that of the weighted cloud but for a share of a point, and rounding takes no padding.
    many, one = torch.rand(1, 999, 2), torch.full((1, 999), 0.1)
    one[:, 900:] = 0
    taken = completed.resampled(PointClouds(many, one), 512)
    assert (taken[0, -1] == many[0, 899]).all() or (taken[0, -1] == many[0, 898]).all()
    assert torch.allclose(taken.mean(1), many[:, :900].mean(1), atol=0.05)
