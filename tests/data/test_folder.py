"""A folder of classes: layouts, the split, meshes and clouds, damaged files, what is kept."""

import os
import warnings

import numpy as np
import pytest
import torch

from ddeq_fast import data
from ddeq_fast.data import load_folder, load_modelnet

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
CUBE = "".join(f"v {x} {y} {z}\n" for x in (0, 2) for y in (0, 2) for z in (0, 4))
FACES = "f 1 2 4 3\nf 5 7 8 6\nf 1 5 6 2\nf 3 4 8 7\nf 1 3 7 5\nf 2 6 8 4\n"


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """Only tests of what is kept keep something."""
    monkeypatch.setenv("DDEQ_FAST_CACHE", "none")


def cloud(seed, n=12, dim=3):
    points = np.random.default_rng(seed).normal(size=(n, dim)) + 5
    return "".join(" ".join(f"{value:.6f}" for value in row) + "\n" for row in points.tolist())


def write(root, *names, text=None):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(cloud(i) if text is None else text)
    return root


def flat(root, **classes):
    """Folders of so many clouds each."""
    return write(root, *(f"{name}/{i:02d}.xyz" for name, count in classes.items() for i in range(count)))


LAYOUTS = {
    "parts in classes": ["a/train/0.xyz", "a/train/1.xyz", "a/test/0.xyz", "b/train/0.xyz", "b/test/0.xyz"],
    "classes in parts": ["train/a/0.xyz", "train/a/1.xyz", "test/a/0.xyz", "train/b/0.xyz", "test/b/0.xyz"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_are_those_of_the_folders(tmp_path, layout):
    root = write(tmp_path / "mine", *LAYOUTS[layout])
    write(root, "README.txt", ".git/config", "a/.hidden.xyz", text="no cloud\n")
    dataset = load_folder(root)
    assert (dataset.name, dataset.dim, dataset.classes, dataset.names) == ("mine", 3, 2, ("a", "b"))
    assert dataset.train.labels.tolist() == [0, 0, 1] and dataset.test.labels.tolist() == [0, 1]


def test_a_share_of_every_class_is_held_out(tmp_path):
    root = flat(tmp_path, many=20, some=5, two=2, one=1)
    dataset = load_folder(root)
    assert dataset.names == ("many", "one", "some", "two")
    assert dataset.train.labels.bincount().tolist() == [16, 1, 4, 1]
    assert dataset.test.labels.bincount(minlength=4).tolist() == [4, 0, 1, 1]
    every = {tuple(points.flatten().tolist()) for points in (*dataset.train.points, *dataset.test.points)}
    assert len(every) == 28
    again, other = load_folder(root), load_folder(root, seed=1)
    assert all(map(torch.equal, dataset.test.points, again.test.points))
    assert not all(map(torch.equal, dataset.test.points, other.test.points))
    half = load_folder(root, test_share=0.5)
    assert half.test.labels.bincount(minlength=4).tolist() == [10, 0, 2, 1]


BAD_LAYOUTS = [
    (["a/train/0.xyz"], FileNotFoundError, r"a/test holds no files of .*\.obj.*; expected files in CLASS/train and"),
    (["a/train/0.xyz", "a/test/0.xyz", "a/1.xyz"], ValueError, r"/a holds files that are in neither part"),
    (["a/train/0.xyz", "a/test/0.xyz", "b/1.xyz"], ValueError, r"/b holds files that are in neither part"),
    (["a/0.xyz", "b/0.dat"], FileNotFoundError, r"/b holds no files of \.npy"),
    (["a.xyz"], FileNotFoundError, r"holds no folders of classes; expected files in"),
    (["train/a/0.xyz", "test/b/0.xyz"], FileNotFoundError, r"test/a holds no files"),
    (["a/0.xyz", "b/0.xyz"], ValueError, r"leaves no file of any class to test on$"),
]


@pytest.mark.parametrize("names, error, message", BAD_LAYOUTS)
def test_layouts_that_are_none(tmp_path, names, error, message):
    with pytest.raises(error, match=message):
        load_folder(write(tmp_path, *names))


def test_files_of_other_formats_are_told_of(tmp_path):
    root = flat(tmp_path, a=2)
    write(root, "a/more.stl", "a/more.STL", "a/picture.png", "a/cube.mtl")
    with pytest.warns(UserWarning, match=r"holds files that are not read: 2 of \.stl$"):
        load_folder(root)


def test_meshes_of_every_format_become_points_of_their_surface(tmp_path):
    off = "OFF\n8 6 0\n" + CUBE.replace("v ", "")
    off += "".join(
        "4 " + " ".join(str(int(word) - 1) for word in line.split()[1:]) + "\n" for line in FACES.splitlines()
    )
    ply = "ply\nformat ascii 1.0\nelement vertex 8\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    ply += (
        "element face 6\nproperty list uchar int vertex_indices\nend_header\n" + "\n".join(off.splitlines()[2:]) + "\n"
    )
    for name, text in (("0.obj", CUBE + FACES), ("1.off", off), ("2.ply", ply), ("3.obj", CUBE + FACES)):
        write(tmp_path, f"cube/{name}", text=text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_folder(tmp_path, max_points=300, normalise="none")
    for points in (*dataset.train.points, *dataset.test.points):
        assert points.shape == (300, 3) and points.dtype == torch.float32
        sides = (points - torch.tensor([1.0, 1.0, 2.0])).abs() / torch.tensor([1.0, 1.0, 2.0])
        torch.testing.assert_close(sides.amax(1), torch.ones(300), rtol=0, atol=1e-6)
        # A fifth of the surface are the two small squares.
        assert 0.1 < (sides[:, 2] > 1 - 1e-6).float().mean() < 0.3
    assert len({points.sum().item() for points in dataset.train.points}) == 3
    assert {len(points) for points in load_folder(tmp_path).train.points} == {1024}
    corners = load_folder(tmp_path, sampling="vertices", normalise="none").train.points[0]
    assert corners.tolist() == [list(map(float, line.split()[1:])) for line in CUBE.splitlines()]


def test_clouds_among_meshes_are_told_of(tmp_path):
    write(tmp_path, "a/0.obj", "a/1.obj", text=CUBE + FACES)
    write(tmp_path, "a/2.xyz")
    with pytest.warns(UserWarning, match=r"1 of 3 files have no faces, first .*a/2\.xyz: their points are taken"):
        load_folder(tmp_path)


def test_where_clouds_lie_and_how_large_they_are(tmp_path):
    root = flat(tmp_path, a=2)
    raw = torch.tensor([list(map(float, line.split())) for line in cloud(0).splitlines()], dtype=torch.float64)
    found = {}
    for kind in ("ball", "box", "none"):
        dataset = load_folder(root, normalise=kind)
        both = (dataset.train.points[0], dataset.test.points[0])
        found[kind] = min(both, key=lambda points: (normal(points) - normal(raw)).norm())
    centred = raw - raw.mean(0)
    torch.testing.assert_close(found["ball"].double(), centred / centred.norm(dim=1).max(), rtol=0, atol=1e-6)
    assert found["box"].abs().max() == 1
    torch.testing.assert_close(found["box"].amax(0), -found["box"].amin(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(found["none"].double(), raw, rtol=0, atol=1e-6)


def normal(points):
    centred = points.double() - points.double().mean(0)
    return centred / centred.norm()


def test_what_single_precision_does_not_keep_is_refused(tmp_path):
    write(tmp_path, "a/0.xyz", "a/1.xyz", text="4500000.001 1 1\n4500000.002 2 2\n4500000.003 3 1\n")
    with pytest.raises(ValueError, match=r"a/0\.xyz: single precision does not keep .*: normalise them$"):
        load_folder(tmp_path, normalise="none")
    assert load_folder(tmp_path).train.points[0][:, 0].diff().abs().min() > 1e-4


def test_the_first_coordinates_and_the_fewest_points(tmp_path):
    write(tmp_path, "a/0.txt", "a/1.txt", "a/2.txt", text=cloud(3, n=50, dim=6))
    assert load_folder(tmp_path).dim == 6
    dataset = load_folder(tmp_path, coordinates=3, max_points=20, normalise="none")
    lines = {tuple(map(float, line.split()[:3])) for line in cloud(3, n=50, dim=6).splitlines()}
    expected = torch.tensor(sorted(lines))
    for points in dataset.train.points:
        away = torch.cdist(points.double(), expected.double())
        assert points.shape == (20, 3) and away.amin(1).max() < 1e-5
    assert not torch.equal(*dataset.train.points)  # each file has its own draws
    with pytest.raises(ValueError, match=r"a/0\.txt: points have 6 coordinates, and 7 are to be taken$"):
        load_folder(tmp_path, coordinates=7)
    write(tmp_path, "a/3.txt", text=cloud(0))
    with pytest.raises(ValueError, match=r"a/3\.txt holds points in 3 dimensions, but .*a/0\.txt in 6: `coordinates`"):
        load_folder(tmp_path)


def test_points_of_a_file_do_not_depend_on_others(tmp_path):
    write(tmp_path, *(f"a/train/{i}.obj" for i in range(3)), "a/test/0.obj", text=CUBE + FACES)
    before = load_folder(tmp_path)
    (tmp_path / "a/train/0.obj").unlink()
    assert torch.equal(before.train.points[2], load_folder(tmp_path).train.points[1])


def test_damaged_files_are_named_or_left_out_and_counted(tmp_path, capsys):
    root = flat(tmp_path, a=6, b=6)
    whole = load_folder(root)
    write(root, "a/03.xyz", text="1 2 3\n1 two 3\n")
    write(root, "b/05.xyz", text="")
    with pytest.raises(ValueError, match=r"a/03\.xyz, line 2: 'two' is no number"):
        load_folder(root)
    capsys.readouterr()
    dataset = load_folder(root, skip_damaged=True)
    assert f"2 of 12 files are damaged and left out, first {root}/a/03.xyz\n" in capsys.readouterr().err
    assert len(dataset.train) + len(dataset.test) == 10
    # What is held out does not change with a file that is damaged.
    known = {tuple(points.flatten().tolist()) for points in whole.test.points}
    assert {tuple(points.flatten().tolist()) for points in dataset.test.points} <= known
    for i in range(6):
        write(root, f"b/{i:02d}.xyz", text="no cloud\n")
    with pytest.raises(ValueError, match=r"leaves no file of class b to train on$"):
        load_folder(root, skip_damaged=True)


def test_bad_options(tmp_path):
    root = flat(tmp_path, a=2)
    for option, value, message in [
        ("sampling", "volume", "sampling must be one of surface, vertices; got 'volume'"),
        ("normalise", "unit", "normalise must be one of ball, box, none; got 'unit'"),
        ("coordinates", 0, "coordinates must be at least 1, got 0"),
        ("test_share", 1.0, r"test_share must lie in \(0, 1\), got 1.0"),
        ("skip_damaged", "yes", "skip_damaged must be .*"),
        ("cache", 3, "cache must be a path, got int"),
        ("max_points", 0, "max_points must be at least 1, got 0"),
    ]:
        with pytest.raises((ValueError, TypeError), match=f"^{message}$"):
            load_folder(root, **{option: value})
    with pytest.raises(
        FileNotFoundError, match=r"^folder: there is no folder .*nowhere; expected files in CLASS/train"
    ):
        data.load("folder", root=tmp_path / "nowhere")


def test_what_is_read_is_kept_where_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DDEQ_FAST_CACHE")
    root = flat(tmp_path / "mine", a=2)
    load_folder(root)
    kept = root / ".ddeq_fast-surface-all-ball.safetensors"
    assert kept.is_file() and f"what was read is kept for the next time: {kept} (" in capsys.readouterr().err
    load_folder(root)
    assert "kept" not in capsys.readouterr().err
    kept.unlink()
    monkeypatch.setenv("DDEQ_FAST_CACHE", str(tmp_path / "named" / "kept"))
    load_folder(root)
    (named,) = (tmp_path / "named" / "kept").iterdir()
    assert named.name.startswith("mine-surface-all-ball-") and str(named) in capsys.readouterr().err
    load_folder(root, cache=tmp_path / "argument")
    assert [path.name for path in (tmp_path / "argument").iterdir()] == [named.name]
    # A folder of the same name elsewhere has a file of its own.
    load_folder(flat(tmp_path / "other" / "mine", a=3))
    assert len([*(tmp_path / "named" / "kept").iterdir()]) == 2
    monkeypatch.setenv("DDEQ_FAST_CACHE", "none")
    before = sorted(tmp_path.rglob("*"))
    load_folder(root, max_points=5)
    load_modelnet(meshes(tmp_path / "meshes"))
    monkeypatch.delenv("DDEQ_FAST_CACHE")
    load_folder(root, max_points=5, cache="none")
    assert [path for path in sorted(tmp_path.rglob("*")) if "meshes" not in path.parts] == before
    assert not [path for path in (tmp_path / "meshes").iterdir() if path.name.startswith(".")]


def meshes(root):
    text = "OFF\n4 1 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n"
    return write(root, "a/train/0.off", "a/test/0.off", text=text)


def test_what_is_kept_is_of_the_same_files_and_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("DDEQ_FAST_CACHE", str(tmp_path / "kept"))
    root = write(tmp_path / "mine", "a/0.obj", "a/1.obj", "a/2.xyz", text=CUBE + FACES)
    write(root, "a/2.xyz")
    reads = []
    read = data.recipe.Recipe.cloud

    def counting(self, path, name):
        reads.append(name)
        return read(self, path, name)

    def loads(**options):
        reads.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_folder(root, **options)
        return len(reads)

    monkeypatch.setattr(data.recipe.Recipe, "cloud", counting)
    assert (loads(), loads()) == (3, 0)
    with pytest.warns(UserWarning, match=r"1 of 3 files have no faces"):  # said of what is kept, too
        load_folder(root)
    assert loads(test_share=0.6) == 0
    for options in ({"seed": 1}, {"coordinates": 2}, {"normalise": "box"}, {"max_points": 9}, {"sampling": "vertices"}):
        assert (loads(**options), loads(**options)) == (3, 0), options
    assert loads(sampling="vertices", seed=5) == 0  # whole clouds, of which nothing is drawn
    loads()
    os.utime(root / "a/2.xyz", ns=(1, 1))
    assert (loads(), loads()) == (3, 0)
    (root / "a/2.xyz").rename(root / "a/3.xyz")
    assert loads() == 3
    write(root, "a/4.obj", text=CUBE + FACES)
    assert loads() == 4


def test_damaged_files_are_told_of_from_what_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DDEQ_FAST_CACHE", str(tmp_path / "kept"))
    root = write(flat(tmp_path / "mine", a=4), "a/01.xyz", text="")
    for _ in range(2):
        load_folder(root, skip_damaged=True)
        assert f"1 of 4 files are damaged and left out, first {root}/a/01.xyz" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"a/01\.xyz is empty$"):
        load_folder(root)
