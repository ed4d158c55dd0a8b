"""MNIST from files that the tests write: both layouts hold the same clouds, and damage is named."""

import gzip

import numpy as np
import pytest
import torch

from ddeq_fast import data
from ddeq_fast.data.mnist import load_mnist

IDX = {
    "train-images-idx3-ubyte": ("train", 3),
    "train-labels-idx1-ubyte": ("train", 1),
    "t10k-images-idx3-ubyte": ("test", 3),
    "t10k-labels-idx1-ubyte": ("test", 1),
}


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def csv(images, labels, points):
    """The public layout, with the points of each image shuffled as there."""
    lines = ["label," + ",".join(f"{axis}{i}" for i in range(points) for axis in "xyv")]
    shuffle = np.random.default_rng(0).permutation
    for image, label in zip(images, labels, strict=True):
        row, column = image.nonzero()
        triples = shuffle(np.stack((column, 27 - row, image[row, column].astype(int)), 1))
        padding = np.full((points - len(row), 3), -1)
        lines.append(",".join(map(str, [label, *np.concatenate((triples, padding)).ravel()])))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def images():
    """Images and labels of each split: strokes with brightness from 1 to 255."""
    draw = np.random.default_rng(0)
    result = {}
    for split, number in (("train", 12), ("test", 5)):
        pictures = draw.integers(1, 256, (number, 28, 28), dtype=np.uint8)
        pictures[draw.random(pictures.shape) > 0.2] = 0
        pictures[:, 14, 3] = 255
        result[split] = pictures, (np.arange(number) % 10).astype(np.uint8)
    return result


@pytest.fixture
def folder(tmp_path, images):
    """The four IDX files, half of them packed."""
    for name, (split, ndim) in IDX.items():
        content = idx(images[split][ndim == 1])
        if split == "train":
            (tmp_path / name).write_bytes(content)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


@pytest.fixture
def tables(tmp_path, images):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(csv(*images[split], points=250))
    return tmp_path


def picture(points, weights, intensity):
    """The image (28, 28) that a cloud was made from; as weights, its brightness is known up to a factor."""
    column, height = (points[:, :2] * 5 + 13.5).round().long().unbind(1)
    ink = (points[:, 2] + 1) / 2 if intensity == "coordinate" else weights / weights.max()
    image = np.zeros((28, 28), np.uint8)
    image[27 - height, column] = (255 * ink).round()
    return image


@pytest.mark.parametrize("intensity", ["coordinate", "weight", "none"])
def test_clouds_hold_the_images(folder, images, intensity):
    dataset = data.load("mnist", root=folder, intensity=intensity, threshold=0)
    assert (dataset.name, dataset.classes, dataset.dim) == ("mnist", 10, 3 if intensity == "coordinate" else 2)
    for split in ("train", "test"):
        pictures, labels = images[split]
        clouds = getattr(dataset, split)
        assert clouds.labels.tolist() == labels.tolist() and clouds.labels.dtype == torch.int64
        for points, weights, expected in zip(clouds.points, clouds.weights, pictures, strict=True):
            assert points.dtype == weights.dtype == torch.float32
            if intensity == "weight":
                assert weights.mean().item() == pytest.approx(1.0, abs=1e-6)
            else:
                assert (weights == 1).all()
            got = picture(points, weights, intensity)
            np.testing.assert_array_equal(got, 255 * (expected > 0) if intensity == "none" else expected)


def test_the_threshold_drops_dim_pixels(folder, images):
    split = load_mnist(folder, threshold=0.5).train
    for points, expected in zip(split.points, images["train"][0], strict=True):
        np.testing.assert_array_equal(
            picture(points, None, "coordinate"), np.where(expected / 255 > 0.5, expected, 0).astype(np.uint8)
        )


def test_both_layouts_hold_the_same_clouds(folder, images, tmp_path_factory):
    other = tmp_path_factory.mktemp("csv")
    (other / "train.csv").write_text(csv(*images["train"], points=250))
    (other / "test.csv.gz").write_bytes(gzip.compress(csv(*images["test"], points=300).encode()))
    for split in ("train", "test"):
        first, second = (getattr(load_mnist(root), split) for root in (folder, other))
        assert torch.equal(first.labels, second.labels)
        for a, b in zip(first.points, second.points, strict=True):
            rows = (sorted(map(tuple, cloud.tolist())) for cloud in (a, b))
            assert next(rows) == next(rows)


def test_names_in_capitals_and_files_beside_the_data(folder):
    expected = load_mnist(folder)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.upper())
        (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    got = load_mnist(folder)
    assert all(map(torch.equal, got.test.points, expected.test.points))


def test_a_byte_order_mark_before_a_csv(tables):
    expected = load_mnist(tables)
    path = tables / "train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert all(map(torch.equal, load_mnist(tables).train.points, expected.train.points))


def test_the_folder_may_come_from_the_environment(folder, monkeypatch):
    folder.rename(folder.parent / "mnist")
    monkeypatch.setenv("DDEQ_FAST_DATA", str(folder.parent))
    assert len(data.load("mnist").train) == 12


def test_large_clouds_are_cut_to_points_of_their_own(folder):
    whole, cut = load_mnist(folder, threshold=0), load_mnist(folder, threshold=0, max_points=160)
    sizes = [len(points) for points in whole.train.points]
    assert min(sizes) < 160 < max(sizes)
    for points, fewer, weights in zip(whole.train.points, cut.train.points, cut.train.weights, strict=True):
        assert len(fewer) == len(weights) == min(160, len(points))
        assert set(map(tuple, fewer.tolist())) <= set(map(tuple, points.tolist()))
        assert len(set(map(tuple, fewer.tolist()))) == len(fewer)


def test_what_is_cut_depends_on_the_seed_alone(folder):
    def points(seed):
        torch.manual_seed(torch.seed() % 1000)
        return torch.cat(load_mnist(folder, max_points=20, seed=seed).train.points)

    assert torch.equal(points(0), points(0))
    assert not torch.equal(points(0), points(1))


def test_missing_files_are_named(tmp_path, folder, monkeypatch):
    monkeypatch.delenv("DDEQ_FAST_DATA", raising=False)
    with pytest.raises(
        FileNotFoundError, match=r"pass root, or set DDEQ_FAST_DATA .*train-images-idx3-ubyte.*train\.csv"
    ):
        load_mnist()
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; expected train-images-idx3-ubyte"):
        load_mnist(tmp_path / "nowhere")
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds t10k-images-idx3-ubyte\.gz.*; expected .*train-labels-idx1"):
        load_mnist(folder)


DAMAGE = {
    "empty": (lambda c: b"", r"is empty$"),
    "header": (lambda c: c[:6], r"is truncated: 6 bytes do not hold the header of 8$"),
    "truncated": (lambda c: c[:-3], r"is truncated: its header promises 12 values \(12,\), it holds 9$"),
    "trailing": (lambda c: c + b"\0", r"has bytes after its end: .* 12 values \(12,\), it holds 13$"),
    "magic": (lambda c: b"\x1f" + c[1:], r"must start with the bytes 00000801, got 1f000801$"),
    "too few": (lambda c: idx(np.zeros(11, np.uint8)), r"holds 11 labels, but .*images-idx3-ubyte 12 images$"),
    "range": (lambda c: c[:-1] + b"\x0a", r"labels must lie from 0 to 9, got 10 at index 11$"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_idx_files_are_named(folder, case):
    damage, message = DAMAGE[case]
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte:? " + message):
        load_mnist(folder)


def test_images_of_another_size_or_without_ink_are_named(folder):
    path = folder / "train-images-idx3-ubyte"
    blank = np.full((12, 28, 28), 255, np.uint8)
    blank[7] = 3
    path.write_bytes(idx(blank))
    with pytest.raises(ValueError, match=r"images-idx3-ubyte: image 7 has no pixel brighter than the threshold 0\.25$"):
        load_mnist(folder)
    path.write_bytes(idx(blank[:, :20]))
    with pytest.raises(ValueError, match=r"must hold images of 28 x 28, got an array \(12, 20, 28\)$"):
        load_mnist(folder)
    path.write_bytes(idx(blank[:0]))
    with pytest.raises(ValueError, match=r"must hold images of 28 x 28, got an array \(0, 28, 28\)$"):
        load_mnist(folder)


@pytest.mark.parametrize("cut", [5, -9, -1])
def test_a_truncated_gzip_file_is_named(folder, cut):
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is no whole gzip file"):
        load_mnist(folder)


LINES = {
    "word": (lambda words: ["x", *words[1:]], "'x' is no integer"),
    "missing value": (lambda words: [words[0], "", *words[2:]], "'' is no integer"),
    "fraction": (lambda words: [words[0], "1.5", *words[2:]], r"'1\.5' is no integer"),
    "not a number": (lambda words: [words[0], "nan", *words[2:]], "'nan' is no integer"),
    "overflow": (lambda words: [words[0], "99999", *words[2:]], "'99999' is no integer from -32768 to 32767"),
    "short": (lambda words: words[:-1], "750 values, but line 2 has 751"),
    "label": (lambda words: ["10", *words[1:]], "the label must lie from 0 to 9, got 10"),
    "position": (lambda words: [words[0], "28", "0", "7", *words[4:]], r"point 0 must lie on .*; got 28,0,7"),
    "brightness": (lambda words: [*words[:6], "256", *words[7:]], r"point 1 .* 1 to 255.*; got \d+,\d+,256"),
    "half a point": (lambda words: [*words[:-3], "3", "-1", "-1"], r"point 249 .*; got 3,-1,-1"),
    "no point": (lambda words: [words[0]] + ["-1"] * 750, r"no point is brighter than the threshold 0\.25"),
}


@pytest.mark.parametrize("case", LINES)
def test_damaged_lines_of_a_csv_are_named(tables, case):
    damage, message = LINES[case]
    path = tables / "train.csv"
    lines = path.read_text().splitlines()
    lines[4] = ",".join(damage(lines[4].split(",")))
    lines.insert(2, "")  # blank lines count
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"train\.csv, line 6: " + message):
        load_mnist(tables)


def test_a_csv_needs_its_header_and_lines(tables):
    path = tables / "test.csv"
    header, *lines = path.read_text().splitlines(keepends=True)
    for content in ("".join(lines), header[6:] + "".join(lines)):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"test\.csv, line 1: expected the header label,x0,y0,v0"):
            load_mnist(tables)
    path.write_text(header)
    with pytest.raises(ValueError, match=r"test\.csv holds no numbers from line 2 on$"):
        load_mnist(tables)
    path.write_text(header.strip() + ",x250,y250,v250\n" + "".join(lines))
    with pytest.raises(ValueError, match=r"test\.csv, line 2: 751 values under a header of 754$"):
        load_mnist(tables)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"test\.csv is empty$"):
        load_mnist(tables)


def test_bad_arguments(folder):
    with pytest.raises(ValueError, match=r"^intensity must be one of coordinate, none, weight; got 'colour'$"):
        load_mnist(folder, intensity="colour")
    with pytest.raises(ValueError, match=r"^threshold must lie in \[0, 1\), got 1$"):
        load_mnist(folder, threshold=1)
    with pytest.raises(ValueError, match=r"^max_points must be at least 1, got 0$"):
        load_mnist(folder, max_points=0)
    for threshold in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=r"^threshold must lie in \[0, 1\), got"):
            load_mnist(folder, threshold=threshold)
    with pytest.raises(ValueError, match=r"^seed must be at least 0, got -1$"):
        load_mnist(folder, seed=-1)
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=r"^root must be None for digits"):
        data.load("digits", root=folder)
