"""ModelNet40 from OFF folders that the tests write: sizes, splits, the kept file, and damage named by file and line."""

import os

import numpy as np
import pytest
import torch

from ddeq_fast import data
from ddeq_fast.data.modelnet import SIZES, load_modelnet

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
KEPT = ".ddeq_fast-s-vertices.safetensors"


def off(vertices, faces, fused=False):
    """A mesh as text, its header on one line or on two."""
    lines = [f"OFF{len(vertices)} {len(faces)} 0" if fused else f"OFF\n{len(vertices)} {len(faces)} 0"]
    lines += [" ".join(f"{value:.9g}" for value in vertex) for vertex in vertices.tolist()]
    lines += [" ".join(map(str, [len(face), *face])) for face in faces]
    return "\n".join(lines) + "\n"


def sphere(rows, stretch, draw):
    """A sphere of rows x rows vertices and square faces, stretched along its axis, somewhere."""
    angle = np.linspace(0.1, np.pi - 0.1, rows)[:, None]
    turn = np.arange(rows) * 2 * np.pi / rows
    height = np.cos(angle) * np.ones(rows) * stretch
    points = np.stack((np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn), height), -1).reshape(-1, 3)
    corners = [(i * rows + j, i * rows + (j + 1) % rows) for i in range(rows) for j in range(rows)]
    faces = [(a, b, b + rows, a + rows) for a, b in corners[:-rows]]
    return 30 * points + draw.normal(size=3) * 100, faces


ROWS = {"train": (12, 18, 30), "test": (70,)}  # 144, 324, 900 and 4,900 vertices


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    root = tmp_path / "data"
    for name, stretch in (("bottle", 3.0), ("plate", 0.1)):
        for part, rows in ROWS.items():
            place = root / name / part
            place.mkdir(parents=True)
            for i, number in enumerate(rows):
                (place / f"{name}_{i}.off").write_text(off(*sphere(number, stretch, draw), fused=i == 1))
    (root / "README.txt").write_text("not a class\n")
    return root


def same(first, second):
    return all(
        torch.equal(a.labels, b.labels) and len(a) == len(b) and all(map(torch.equal, a.points, b.points))
        for a, b in ((first.train, second.train), (first.test, second.test))
    )


def test_clouds_are_in_the_unit_ball_and_of_the_size(folder):
    for size, (low, high) in SIZES.items():
        dataset = data.load(f"modelnet40-{size}", root=folder)
        assert (dataset.name, dataset.dim, dataset.classes) == (f"modelnet40-{size}", 3, 2)
        assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and dataset.test.labels.tolist() == [0, 1]
        rows = [12, 18, 30, 12, 18, 30, 70, 70]
        for points, weights, vertices in zip(
            [*dataset.train.points, *dataset.test.points],
            [*dataset.train.weights, *dataset.test.weights],
            [number**2 for number in rows],
            strict=True,
        ):
            assert points.dtype == torch.float32 and torch.equal(weights, torch.ones(len(points)))
            assert min(low, vertices) <= len(points) <= min(high, vertices)
            assert points.norm(dim=1).max().item() == pytest.approx(1, abs=1e-6)
            assert points.mean(0).abs().max() < 1e-6


def test_vertices_of_a_small_mesh_are_kept_in_their_shape(folder):
    text = (folder / "bottle" / "train" / "bottle_0.off").read_text().splitlines()[2:146]
    vertices = torch.tensor([[float(word) for word in line.split()] for line in text], dtype=torch.float64)
    centred = vertices - vertices.mean(0)
    cloud = load_modelnet(folder).train.points[0]
    torch.testing.assert_close(cloud, (centred / centred.norm(dim=1).max()).float(), rtol=0, atol=1e-6)


def test_surface_points_lie_on_the_surface(folder):
    dataset = load_modelnet(folder, sampling="surface")
    assert {len(points) for points in dataset.train.points} == {400}
    plate, bottle = dataset.test.points[1], dataset.test.points[0]
    # The half axes of the stretched spheres are 30, 30 and 90 or 3, with the caps cut off; the largest becomes one.
    for cloud, axes in ((bottle, (1 / 3, 1 / 3, 1)), (plate, (1, 1, 0.1))):
        extent = cloud.abs().amax(0)
        torch.testing.assert_close(extent, torch.tensor(axes), rtol=0.08, atol=0)
    again, other = (load_modelnet(folder, sampling="surface", seed=seed, cache=folder / "bottle") for seed in (0, 1))
    assert same(dataset, again) and not same(dataset, other)


def test_points_of_a_surface_do_not_depend_on_other_meshes(folder):
    before = load_modelnet(folder, sampling="surface")
    (folder / "bottle" / "train" / "bottle_1.off").unlink()
    after = load_modelnet(folder, sampling="surface")
    assert len(after.train) == 5
    assert torch.equal(before.train.points[2], after.train.points[1])


def test_large_clouds_are_cut(folder):
    whole, cut = load_modelnet(folder), load_modelnet(folder, max_points=100)
    for points, fewer in zip(whole.train.points, cut.train.points, strict=True):
        assert len(fewer) == 100 and set(map(tuple, fewer.tolist())) < set(map(tuple, points.tolist()))
    assert same(cut, load_modelnet(folder, max_points=100))
    assert not same(cut, load_modelnet(folder, max_points=100, seed=1))
    with pytest.raises(ValueError, match=r"^max_points must be at least 1, got 0$"):
        load_modelnet(folder, max_points=0)


def test_meshes_are_read_once(folder, monkeypatch):
    first = load_modelnet(folder)
    assert (folder / KEPT).is_file()

    def refuse(path, dtype):
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr("ddeq_fast.data.recipe.load_points", refuse)
    assert same(first, load_modelnet(folder))
    with pytest.raises(AssertionError, match=r"bottle_0\.off is read again"):
        load_modelnet(folder, size="m")


def test_a_changed_source_is_noticed(folder):
    first = load_modelnet(folder)
    path = folder / "plate" / "test" / "plate_0.off"
    text = path.read_text()
    path.write_text(text.replace("OFF\n", "OFF\n# the same mesh\n"))
    assert same(first, load_modelnet(folder))
    lines = text.splitlines()
    lines[2] = "1000 1000 1000"
    path.write_text("\n".join(lines))
    assert not same(first, load_modelnet(folder))
    path.write_text(text)
    os.utime(path, ns=(1, 1))  # older than before
    assert same(first, load_modelnet(folder))
    path.rename(path.with_name("other.off"))
    assert same(first, load_modelnet(folder))
    (folder / "plate" / "test" / "more.off").write_text(text)
    assert len(load_modelnet(folder).test) == 3


def damaged(content, where):
    if where == "cut":
        return content[: len(content) // 2]
    if where == "empty":
        return b""
    if where == "longer":
        return content + b"\0"
    place = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}[where]
    return content[:place] + bytes((content[place] ^ 1,)) + content[place + 1 :]


@pytest.mark.parametrize("where", ["first", "middle", "last", "cut", "empty", "longer"])
def test_a_damaged_kept_file_is_made_again(folder, where):
    first = load_modelnet(folder)
    path = folder / KEPT
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, where))
    with pytest.warns(UserWarning, match=rf"{KEPT} is damaged.*; it is made again$"):
        again = load_modelnet(folder)
    assert same(first, again) and path.read_bytes() == whole


def test_nothing_is_kept_of_what_failed(folder):
    path = folder / "plate" / "test" / "plate_0.off"
    path.write_text(path.read_text()[:-200])
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=r"plate_0\.off, line \d+: truncated: its header promises 4900 vertices"):
        load_modelnet(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_failed_write_leaves_nothing_and_is_warned_of(folder, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.warns(UserWarning, match=r"is not kept for the next time: .*No space left on device: '.*'$"):
            first = load_modelnet(folder)
    assert not list(folder.glob(".*"))
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"is not kept for the next time: .*file"):
        assert same(first, load_modelnet(folder, cache=tmp_path / "file"))


def test_a_folder_in_the_place_of_the_kept_file_is_warned_of(folder):
    (folder / KEPT).mkdir()
    with pytest.warns(UserWarning, match=r"is not kept for the next time"):
        assert len(load_modelnet(folder).train) == 6


FAULTS = {
    "empty": ("", r"is empty$"),
    "no mesh": ("solid cube\n", r", line 1: expected OFF, got 'solid cube'; understood are OFF, COFF, NOFF, CNOFF"),
    "mixed dimension": ("OFF\n2 0 0\n1 2 3\n1 2\n", r", line 4: 2 values, but line 3 has 3$"),
    "not finite": ("OFF2 0 0\n1 2 3\n1 inf 2\n", r", line 3: 'inf' is not finite$"),
    "no number": ("OFF\n# x\n\n2 0 0\n1 2 3\n1 x 2\n", r", line 6: 'x' is no number$"),
    "truncated": (
        "OFF\n3 1 0\n1 2 3\n1 2 3\n1 2 3\n",
        r", line 5: truncated: .* 3 vertices and 1 faces, 3 lines follow$",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("source", ["vertices", "surface"])
def test_faults_are_named(folder, case, source):
    content, message = FAULTS[case]
    (folder / "plate" / "train" / "plate_2.off").write_text(content)
    with pytest.raises(ValueError, match=r"plate_2\.off ?" + message):
        load_modelnet(folder, sampling=source)
    assert not list(folder.glob(".*"))


def test_a_surface_without_area_is_named(folder):
    (folder / "plate" / "train" / "plate_2.off").write_text("OFF\n3 1 0\n1 2 3\n1 2 3\n1 2 3\n3 0 1 2\n")
    with pytest.raises(ValueError, match=r"plate_2\.off: triangles must cover an area, got 1 triangles of none$"):
        load_modelnet(folder, sampling="surface")


def test_missing_folders_and_bad_arguments(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DDEQ_FAST_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no folder .*modelnet40; expected CLASS/train/\*\.off and CLASS/test"):
        load_modelnet()
    with pytest.raises(FileNotFoundError, match=r"bottle holds no folders of classes; expected CLASS/train/\*\.off"):
        load_modelnet(folder / "bottle")
    folder.rename(tmp_path / "modelnet40")
    assert len(load_modelnet().train) == 6
    for path in (tmp_path / "modelnet40" / "plate" / "test").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"plate/test holds no files of \.off; expected"):
        load_modelnet()
    for option, choices in (("size", "l, m, s"), ("sampling", "surface, vertices")):
        with pytest.raises(ValueError, match=rf"^{option} must be one of {choices}; got 'x'$"):
            load_modelnet(**{option: "x"})
