"""Data sets added from outside the package."""

import pytest
import torch

from ddeq_fast import data
from ddeq_fast.data import Dataset, Split


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(data, "_LOADERS", dict(data._LOADERS))


def load_rings(root=None, intensity="none", max_points=None, *, number=6):
    """Circles of radius one and two."""

    def split(count, seed):
        draw = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 2
        angles = [2 * torch.pi * torch.rand(max_points or 20, generator=draw) for _ in range(count)]
        points = [(1 + labels[i]) * torch.stack((a.cos(), a.sin()), 1) for i, a in enumerate(angles)]
        return Split(points, [torch.ones(len(cloud)) for cloud in points], labels)

    return Dataset("rings", 2, 2, split(number, 0), split(2, 1))


def test_a_data_set_of_ones_own_is_loaded_by_name_with_its_options():
    data.register("rings", load_rings)
    assert data.names()[-1] == "rings"
    rings = data.load("rings", number=4, max_points=7)
    batch = rings.train.batch(rings.train.order(4)[0])
    assert batch.clouds.points.shape == (4, 7, 2) and batch.labels.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(batch.clouds.points.norm(dim=2)[1], torch.full((7,), 2.0))


def test_a_printed_data_set_tells_its_sizes():
    printed = "<4 clouds of 7 to 7 points in dimension 2>"
    assert f"name='rings', dim=2, classes=2, train={printed}" in repr(load_rings(number=4, max_points=7))


@pytest.mark.parametrize(
    "name, loader, error, message",
    [
        (3, load_rings, TypeError, "name must be a string, got int"),
        (None, load_rings, TypeError, "name must be a string, got NoneType"),
        ("rings", None, TypeError, "loader must make a data set when called, got NoneType"),
        ("digits", load_rings, ValueError, "data set name 'digits' is taken"),
    ],
)
def test_what_cannot_be_registered(name, loader, error, message):
    before = data.names()
    with pytest.raises(error, match=f"^{message}$"):
        data.register(name, loader)
    assert data.names() == before


@pytest.mark.parametrize("name", ["mnist", "modelnet40-s"])
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"root": 3}, TypeError, "root must be a path, got int"),
        ({"root": ""}, ValueError, "root must be a path, got ''"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": True}, TypeError, "seed must be an integer, got bool"),
        ({"max_points": 0}, ValueError, "max_points must be at least 1, got 0"),
        ({"max_points": 2.5}, TypeError, "max_points must be an integer, got float"),
        ({"intensity": None}, ValueError, "intensity must be one of coordinate, none, weight; got None"),
    ],
)
def test_options_that_all_loaders_take(name, options, error, message, tmp_path):
    with pytest.raises(error, match=f"^{message}$"):
        data.load(name, **{"root": tmp_path, **options})


def test_bad_loads():
    data.register("nothing", lambda: None)
    data.register("rings", load_rings)
    with pytest.raises(TypeError, match=r"^loader of data set 'nothing' must return a Dataset, got NoneType$"):
        data.load("nothing")
    with pytest.raises(ValueError, match=r"^name must be one of .*rings; got 'ring'$"):
        data.load("ring")
    options = "intensity, max_points, number, root"
    with pytest.raises(TypeError, match=f"^data set 'rings' has no option radius: its options are {options}$"):
        data.load("rings", radius=3)
    with pytest.raises(TypeError, match=r"^data set 'modelnet40-m' has no option threshold: "):
        data.load("modelnet40-m", threshold=0.5)
