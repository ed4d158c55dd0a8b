"""Data sets in one .npz file: whole clouds, padded ones, clouds behind each other, and what is refused by name."""

import numpy as np
import pytest
import torch

from ddeq_fast import data
from ddeq_fast.data import load_archive

DRAW = np.random.default_rng(0)
POINTS = DRAW.normal(size=(6, 5, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])
COUNTS = np.array([5, 2, 3, 1, 5, 4])
HELD = {"test_points": POINTS[:2], "test_labels": LABELS[:2]}
GOOD = {"train_points": POINTS, "train_labels": LABELS, **HELD, "classes": np.array(["cat", "dog", "cow"])}


@pytest.fixture
def load(tmp_path):
    def load(arrays, **options):
        path = tmp_path / "mine.npz"
        np.savez_compressed(path, **arrays)
        return load_archive(path, **options)

    return load


def without(*names, **others):
    return {**{name: array for name, array in GOOD.items() if name not in names}, **others}


def test_whole_clouds(load):
    dataset = load(GOOD)
    assert (dataset.name, dataset.dim, dataset.classes, dataset.names) == ("mine", 3, 3, ("cat", "dog", "cow"))
    assert torch.equal(torch.stack(list(dataset.train.points)), torch.from_numpy(POINTS))
    assert dataset.train.labels.tolist() == LABELS.tolist() and dataset.test.labels.tolist() == [0, 1]
    nameless = load(without("classes", ids=np.arange(6)))
    assert nameless.names is None and nameless.classes == 3


def test_padded_clouds_and_clouds_behind_each_other(load):
    padded = np.where(np.arange(5)[None, :, None] < COUNTS[:, None, None], POINTS, np.nan)
    behind = np.concatenate([cloud[:count] for cloud, count in zip(POINTS, COUNTS, strict=True)])
    for points in (padded, behind):
        dataset = load(without(train_points=points, train_counts=COUNTS))
        assert [len(cloud) for cloud in dataset.train.points] == COUNTS.tolist()
        for cloud, whole, count in zip(dataset.train.points, POINTS, COUNTS, strict=True):
            assert torch.equal(cloud, torch.from_numpy(whole[:count]))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, ">f4"])
def test_any_numbers(load, dtype):
    points = (10 * POINTS).astype(dtype)
    found = load(without(train_points=points)).train.points[0]
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), points[0].astype(np.float32))


def test_val_is_held_out_where_there_is_no_test(load):
    other = {"val_points": POINTS[3:], "val_labels": LABELS[3:]}
    assert len(load(without(**other)).test) == 2
    assert len(load(without(*HELD, **other)).test) == 3


def test_a_share_is_held_out_of_data_without_parts(load):
    arrays = {"points": np.concatenate([POINTS] * 5), "labels": np.concatenate([LABELS] * 5)}
    dataset = load(arrays)
    assert dataset.train.labels.bincount().tolist() == [8, 8, 8] and dataset.test.labels.bincount().tolist() == [
        2,
        2,
        2,
    ]
    assert load(arrays, test_share=0.5).test.labels.bincount().tolist() == [5, 5, 5]


def test_clouds_are_cut_and_normalised(load):
    dataset = load(GOOD, max_points=3, normalise="ball", coordinates=2)
    for cloud in (*dataset.train.points, *dataset.test.points):
        assert cloud.shape == (3, 2)
        assert cloud.norm(dim=1).max().item() == pytest.approx(1, abs=1e-6) and cloud.mean(0).abs().max() < 1e-6
    draws = [load(GOOD, max_points=3, seed=seed).train.points for seed in (0, 0, 1)]
    assert all(map(torch.equal, draws[0], draws[1])) and not all(map(torch.equal, draws[0], draws[2]))


REFUSED = {
    "no points": (without("train_points"), "holds no array points, but train_labels, test_points.*; expected train_"),
    "no labels": (without("train_labels"), "holds no array train_labels"),
    "nothing held out": (without(*HELD), "holds no array test_points"),
    "no counts": (without(train_points=POINTS[0]), "holds no array train_counts"),
    "other number of labels": (without(train_labels=LABELS[:5]), "train_points holds 6 clouds, train_labels 5 labels"),
    "other number of counts": (without(train_counts=COUNTS[:5]), "train_counts holds 5 counts, train_labels 6 labels"),
    "a count too large": (without(train_counts=COUNTS + 1), "train_counts must be from 1 to 5, got 2 to 6"),
    "a count of none": (without(train_counts=COUNTS - 1), "train_counts must be from 1 to 5, got 0 to 4"),
    "counts of other points": (
        without(train_points=POINTS.reshape(-1, 3), train_counts=COUNTS),
        "train_counts add up to 20, but train_points holds 30 points",
    ),
    "negative labels": (without(train_labels=LABELS - 1), "train_labels must be from 0 to 2147483648, got -1 to 1"),
    "labels that are no integers": (
        without(train_labels=LABELS + 0.5),
        r"train_labels must be integers \(N,\), got fl",
    ),
    "labels of another shape": (without(train_labels=LABELS[None]), r"must be integers \(N,\), got int64 \(1, 6\)"),
    "more labels than names": (without(classes=np.array(["a", "b"])), "labels must be below 2, .*; got 2"),
    "names twice": (without(classes=np.array(["a", "b", "a"])), "classes must be different texts"),
    "names that are none": (without(classes=np.arange(3)), "classes must be different texts"),
    "one coordinate of points": (without(train_points=POINTS[:, 0, 0]), r"real numbers \(N, n, d\)"),
    "no points at all": (without(train_points=POINTS[:, :0]), r"real numbers \(N, n, d\).* \(6, 0, 3\)"),
    "complex": (without(train_points=POINTS + 1j), r"real numbers \(N, n, d\).* complex64"),
    "not finite": (
        without(train_points=np.where(np.arange(6)[:, None, None] == 4, np.inf, POINTS)),
        r"train_points: cloud 4 \(the first is 0\) is not finite in float32",
    ),
    "far from zero": (
        without(train_points=POINTS.astype(np.float64) + 1e9),
        r"cloud 0 .*: single precision does not keep the points so far from zero: normalise them",
    ),
    "pickled": (without(train_points=np.array([None], object)), "is damaged, or holds something else than numbers"),
    "one cloud a class": ({"points": POINTS[:3], "labels": LABELS[:3]}, "no class of two clouds or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(load, case):
    arrays, message = REFUSED[case]
    with pytest.raises(ValueError, match=rf"mine\.npz:? .*{message}"):
        load(arrays)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^npz: no file given: pass root, a \.npz file"):
        data.load("npz")
    with pytest.raises(FileNotFoundError, match=r"^there is no file .*none\.npz$"):
        data.load("npz", root=tmp_path / "none.npz")
    np.save(tmp_path / "one.npy", POINTS)
    with pytest.raises(ValueError, match=r"one\.npy is no archive of arrays \(\.npz\)$"):
        data.load("npz", root=tmp_path / "one.npy")


@pytest.mark.filterwarnings("error")
def test_whatever_is_damaged_is_read_or_refused_by_name(tmp_path):
    """150 files with bytes changed or lost, compressed and plain: a data set or a ValueError naming the file."""
    path, draw, refused = tmp_path / "mine.npz", np.random.default_rng(0), 0
    for save in (np.savez, np.savez_compressed):
        save(path, **without(train_counts=COUNTS))
        whole = path.read_bytes()
        for _ in range(75):
            place = int(draw.integers(len(whole)))
            changed = bytes((whole[place] ^ int(draw.integers(1, 256)),)) * int(draw.integers(2))
            path.write_bytes(whole[:place] + changed + whole[place + 1 :] * int(draw.random() < 0.8))
            try:
                assert load_archive(path).dim == 3
            except ValueError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > 75
