"""The networks that DDEQ is compared with: shapes, symmetries, learning, and the command that compares."""

import json
import os
import signal

import pytest
import torch

from ddeq_fast.data.dataset import Dataset, generator
from ddeq_fast.models import missing_points
from problems import rings_and_discs

compare = pytest.importorskip("bench.compare", reason="no benchmarks beside the tests")

from bench.baselines.pcn import PCN  # noqa: E402
from bench.baselines.point_transformer import PointTransformer  # noqa: E402
from bench.baselines.pointnet import PointNet  # noqa: E402
from ddeq_fast.training import Trainer, read_metrics  # noqa: E402
from ddeq_fast.training.config import Config  # noqa: E402

for module in ("safetensors", "tqdm"):
    pytest.importorskip(module)

MODELS = {
    "pointnet": lambda: PointNet(2, 2, 4),
    "transformer": lambda: PointTransformer(2, 2, 16, k=4),
    "pcn": lambda: PCN(2, 24, 1.5, keep=False, width=8),
    "pcn-keep": lambda: PCN(2, 24, 1.5, width=8),
}
CLASSIFIERS, COMPLETERS = ("pointnet", "transformer"), ("pcn", "pcn-keep")


@pytest.fixture(params=list(MODELS))
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def answer(model, x, weights=None):
    """What a model says of clouds that does not depend on the order of their points: logits or new points."""
    out = model(x, weights)
    return out.logits if hasattr(out, "logits") else out.points[~out.observed & (out.weights > 0)]


@pytest.fixture(scope="module")
def rings():
    return Dataset("rings", 2, 2, *(rings_and_discs(count, seed, (12, 21), 0.7) for seed, count in enumerate((64, 32))))


def test_the_order_of_points_has_no_influence(model, cloud):
    x = cloud(3, 17, 2, dtype=torch.float32)
    shuffled = x[:, torch.randperm(17, generator=generator(1))]
    torch.testing.assert_close(answer(model, shuffled), answer(model, x))


@pytest.fixture
def padded(cloud):
    """Clouds of 2, 17 and 9 points with their weights, and the same with other padding and more of it."""
    x = cloud(3, 17, 2, dtype=torch.float32)
    weights = (torch.arange(17) < torch.tensor((2, 17, 9))[:, None]).float()
    far = torch.where(weights[..., None] > 0, x, 100.0)
    return (x, weights), (torch.cat((far, far), 1), torch.cat((weights, torch.zeros_like(weights)), 1))


def test_clouds_are_answered_as_if_alone(model, padded):
    for x, weights in padded:
        alone = [answer(model, cloud[real > 0][None]) for cloud, real in zip(x, weights, strict=True)]
        torch.testing.assert_close(answer(model, x, weights), torch.cat(alone))


def test_padding_has_no_influence_on_training(model, padded):
    trained = []
    for x, weights in padded:
        torch.manual_seed(0)  # of dropout
        trained.append(answer(model.train(), x, weights))
    torch.testing.assert_close(*trained)


def test_gradients_reach_every_parameter_and_point(model, cloud):
    x = cloud(4, 40, 2, grad=True)
    answer(model.double().train(), x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-9, name
    assert x.grad.isfinite().all() and x.grad.abs().amax((1, 2)).min() > 1e-9


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_scores_classes(name, cloud):
    out = MODELS[name]()(cloud(3, 7, 2, dtype=torch.float32))
    assert out.logits.shape == (3, 2) and out.equilibrium is None


@pytest.mark.parametrize("name", COMPLETERS)
def test_a_completion_has_as_many_points_as_asked_for(name, cloud):
    x = cloud(3, 16, 2, dtype=torch.float32)
    weights = (torch.arange(16) < torch.tensor((16, 9, 2))[:, None]).float()
    out = MODELS[name]()(x, weights, noise=torch.randn(3, 9, 2))
    missing = missing_points(weights, 1.5)
    assert missing.tolist() == [8, 4, 1]
    assert torch.equal((out.weights > 0).sum(1), weights.sum(1).long() + missing)
    assert not out.points[out.weights == 0].any() and out.equilibrium is None
    if name == "pcn":
        assert not out.observed.any()
    else:
        assert torch.equal(out.points[out.observed], x[weights > 0])


def test_folding_spreads_points_about_the_coarse_ones(cloud):
    model = PCN(2, 24, 1.5, keep=False, width=8)
    fine = model.decode(cloud(3, 32, dtype=torch.float32)).view(3, 4, model.coarse_points, 2)
    assert (fine[:, :1] - fine[:, 1:]).norm(dim=3).min() > 1e-4


@pytest.mark.parametrize("name", list(MODELS))
def test_the_loop_trains_it(name, rings, tmp_path):
    task = "classify" if name in CLASSIFIERS else "complete"
    config = Config(task=task, epochs=12, batch_size=16, lr=1e-2, warmup=5, jacobian=0.0, growth=1.5, device="cpu")
    trainer = Trainer(config, tmp_path / "run", rings, lambda config, data: MODELS[name]())
    trainer.fit(progress=False)
    losses = [entry["loss"] for entry in read_metrics(tmp_path / "run") if entry["split"] == "train"]
    # A cloud of new points among many kept ones has less to gain.
    assert sum(losses[-4:]) < (0.8 if name == "pcn-keep" else 0.5) * sum(losses[:4])


def test_bad_clouds_are_refused(model, cloud):
    x = cloud(2, 5, 2, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^x "):
        model(x.index_fill(1, torch.tensor([1]), float("nan")))
    with pytest.raises(ValueError, match="weights leaves no point"):
        model(x, torch.tensor([[1.0] * 5, [0.0] * 5]))


@pytest.fixture
def bench(rings, monkeypatch, capsys):
    """bench(*arguments) -> (status, output): the command on rings, with models that are small."""
    tiny = {"dim_z": 8, "particles": 3, "num_heads": 2, "dim_lift": 4, "dim_hidden": 8, "batch_size": 32, "threads": 1}
    presets = {name: preset._replace(settings={**preset.settings, **tiny}) for name, preset in compare.PRESETS.items()}
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
    rows, names = content["rows"], ["ddeq", *compare.MODELS[task]]
    assert status == 0 and len(rows) == 3 and content["machine"]["threads"] == 1
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
        (["--models", "pcn"], "--models must be one of ddeq, pointnet, transformer; got 'pcn'"),
        (["--models", "ddeq", "--runs", str(runs), "--seed", "1"], "holds a run with other settings"),
        (["--ddeq", str(runs / "ddeq"), "--seeds", "2"], "--seeds must be 1 where --ddeq gives a run, got 2"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit) as stop:
            bench(*arguments)
        assert stop.value.code == 2 and message in capsys.readouterr().err
