"""Settings and metrics are declared once: what their tables hold, and what is made of them."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from ddeq_fast import data, gradients
from ddeq_fast.clouds import PointClouds
from ddeq_fast.training import TASKS, Config
from ddeq_fast.training.build import make_solver
from ddeq_fast.training.config import GROUPS, declared
from ddeq_fast.training.metrics import METRICS, by_group, combine, measure, one_line, table
from ddeq_fast.training.tasks import CompletionTask, Task


def test_every_setting_is_declared_whole():
    for item in fields(Config):
        setting = declared(item)
        assert setting.text and setting.group in GROUPS
        if item.type == "bool":
            assert item.default is False
        elif item.type == "str":
            assert setting.options() is None or item.default in setting.options()
        else:
            assert item.default >= setting.low
    assert {declared(item).group for item in fields(Config)} == set(GROUPS)


def test_choices_of_a_registry_are_those_of_the_moment(monkeypatch, small):
    with pytest.raises(ValueError, match=r"^data must be one of .*; got 'spirals'$"):
        small(data="spirals")
    monkeypatch.setattr(data, "_LOADERS", {**data._LOADERS, "spirals": lambda **_: None})
    assert small(data="spirals").data == "spirals"


def test_integers_too_large_for_a_run_are_named(small):
    with pytest.raises(ValueError, match=r"^seed must "):
        small(seed=1 << 63)


@pytest.mark.parametrize("name", TASKS)
def test_tasks_name_metrics_of_the_table(name):
    task = TASKS[name]
    assert {*task.reported, *task.results, task.score} <= METRICS.keys()


def test_partial_metrics_are_in_the_table():
    assert {metric.partial for metric in METRICS.values()} - {None} == {"partial_chamfer", "partial_mmd"} <= {*METRICS}


def solved(evaluations, residual, converged):
    info = SimpleNamespace(evaluations=torch.tensor(evaluations), residual=torch.tensor(residual))
    info.converged = torch.tensor(converged)
    return SimpleNamespace(info=info)


def test_measures_are_means_or_the_largest():
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    output = SimpleNamespace(logits=logits, equilibrium=solved([3, 4, 6, 7], [0.1, 0.3, 0.0, 0.0], [True, False] * 2))
    inputs = SimpleNamespace(labels=torch.tensor([1, 0, 1, 1]))
    found = measure(TASKS["classify"].results, output, inputs)
    assert found.pop("balanced_accuracy") == {0: (1.0, 1), 1: (2.0, 3)}
    assert found == pytest.approx(
        {"accuracy": 0.75, "evaluations": 5.0, "residual": 0.1, "worst_residual": 0.3, "converged": 0.5}
    )
    output.equilibrium = None
    assert measure(TASKS["classify"].reported, output, inputs) == {"accuracy": 0.75}


def test_distances_to_the_whole_of_completed_and_partial_clouds():
    whole = PointClouds(torch.tensor([[[0.0], [1.0]]]), torch.ones(1, 2))
    clouds = PointClouds(torch.tensor([[[0.0], [0.0]]]), torch.tensor([[1.0, 0.0]]))
    output = SimpleNamespace(points=whole.points, weights=whole.weights, equilibrium=None)
    found = measure(CompletionTask.results, output, SimpleNamespace(clouds=clouds, whole=whole))
    assert found == pytest.approx({"chamfer": 0.0, "mmd": 0.0, "partial_chamfer": 0.5, "partial_mmd": 0.5})


def test_batches_are_combined_by_their_samples():
    parts = [(3, {"loss": 1.0, "worst_residual": 0.1}), (1, {"loss": 5.0, "worst_residual": 0.4}), (0, {})]
    assert combine(parts) == {"loss": 2.0, "worst_residual": 0.4}


def test_a_metric_of_groups_is_the_mean_over_groups():
    parts = [(3, {"balanced_accuracy": {0: (1.0, 1), 4: (1.0, 2)}}), (2, {"balanced_accuracy": {4: (0.0, 2)}})]
    assert by_group(parts, "balanced_accuracy") == {0: (1.0, 1), 4: (1.0, 4)}
    assert combine(parts) == {"balanced_accuracy": pytest.approx((1 + 1 / 4) / 2)}
    assert by_group(parts, "accuracy") == {}


def test_better_is_lower_but_for_shares():
    assert METRICS["accuracy"].better(0.9, 0.8) and not METRICS["accuracy"].better(0.8, 0.8)
    assert METRICS["chamfer"].better(0.8, 0.9) and not METRICS["chamfer"].better(0.9, 0.9)
    assert CompletionTask(Config(task="complete")).better(0.1, 0.2)
    assert Task.score == "loss"


def test_metrics_for_people():
    metrics = {"split": "test", "lr": 0.003, "loss": 0.25, "mmd": 0.5, "partial_mmd": 2.0, "worst_residual": 1e-3}
    assert one_line(metrics) == "test: loss 0.2500  MMD^2 0.50000  residual 1.0e-03"
    assert table({name: value for name, value in metrics.items() if name != "lr"}) == [
        ("loss", "0.2500"),
        ("squared MMD", "0.50000, 0.25 of the partial input's own 2.00000"),
        ("relative MMD residual, worst", "1.0e-03"),
    ]


def test_backwards_to_choose_from():
    names = {item.name: declared(item).options() for item in fields(Config)}["backward"]
    assert {"phantom", "ift", "bilevel"} <= set(names)
    assert all(gradients.make(name) is not None for name in names)


@pytest.mark.parametrize("solver", ["auto", "anderson", "flow"])
def test_recorded_steps_are_a_setting(solver):
    assert make_solver(Config(solver=solver, cuda_graph=True)).cuda_graph
    assert not make_solver(Config(solver=solver)).cuda_graph
