"""Files that promise or unpack to more than they should, files beside the data, and threads that read at once."""

import gzip
import io
import threading
import tracemalloc
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ddeq_fast.data.files import load_points, write_points
from ddeq_fast.data.formats.reading import find, read_bytes
from ddeq_fast.data.mnist import read_idx
from ddeq_fast.data.modelnet import load_modelnet

MANY = 10**12
ARRAY = io.BytesIO()
np.lib.format.write_array_header_1_0(ARRAY, {"descr": "<f8", "fortran_order": False, "shape": (MANY, 3)})
ZEROS = io.BytesIO()
np.save(ZEROS, np.zeros((1_000_000, 3)))
ARCHIVE = io.BytesIO()
with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("points.npy", ZEROS.getvalue())
PLY = f"ply\nformat %s 1.0\nelement vertex {MANY}\nproperty float x\nproperty float y\n%send_header\n1 2\n"
LIST = "property list uchar int a\n"
PROMISES = {
    "a.npy": (ARRAY.getvalue() + bytes(48), "promises 24,000,000,000,000 bytes of numbers, 48 follow$"),
    "a.ply": (PLY % ("ascii", ""), "truncated"),
    "b.ply": (PLY % ("ascii", LIST), "truncated"),
    "c.ply": (PLY % ("binary_little_endian", ""), "truncated"),
    "d.ply": (PLY % ("binary_little_endian", LIST), "truncated"),
    "a.off": (f"OFF\n{MANY} 0 0\n1 2 3\n", "truncated"),
    "a.xyz.gz": (gzip.compress(b"1 2 3\n" * (8 << 20)), "unpacks to more than 100 times its size"),
    "a.NPY.GZ": (gzip.compress(ZEROS.getvalue()), "unpacks to more than 100 times its size"),
    "a.npz": (ARCHIVE.getvalue(), "unpacks to more than 100 times its size"),
    "a.off.gz": (gzip.compress(b"OFF\n1 0 0\n1 2 3\n")[:-9], "is no whole gzip file"),
}


@pytest.mark.parametrize("name", PROMISES)
def test_promises_take_no_memory(tmp_path, name):
    content, message = PROMISES[name]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            load_points(path)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_idx_files_are_unpacked_with_the_same_limit(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 1)) + (30 << 20).to_bytes(4, "big") + bytes(30 << 20)))
    with pytest.raises(ValueError, match=r"labels\.gz unpacks to more than 100 times its size"):
        read_idx(path, 1)


def test_what_grows_much_but_is_small_is_read(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(10 << 20)))
    assert read_bytes(path) == bytes(10 << 20)


HEADS = {
    "a.xyz": "",
    "a.off": "OFF\n3000 0 0\n",
    "a.ply": "ply\nformat ascii 1.0\nelement vertex 3000\n"
    + "".join(f"property float {axis}\n" for axis in "xyz")
    + "end_header\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_reading_in_threads_leaves_warnings_alone(tmp_path, name):
    points = np.random.default_rng(0).normal(size=(3000, 3))
    rows = "".join(" ".join(map(str, row)) + "\n" for row in points.tolist())
    (tmp_path / name).write_text(HEADS[name] + rows)
    seen, done = [], threading.Event()

    def watch(before):
        while not done.is_set():
            seen.append(warnings.filters[:1] == before)

    watcher = threading.Thread(target=watch, args=(warnings.filters[:1],))
    watcher.start()
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(load_points, [tmp_path / name] * 12))
    done.set()
    watcher.join()
    assert all(seen) and seen and all(torch.equal(cloud, loaded[0]) for cloud in loaded)


def test_files_beside_the_data_are_passed_over(tmp_path):
    mesh = "OFF\n4 1 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n"
    for part in ("train", "test"):
        for name in ("chair", "__MACOSX", ".trash"):
            place = tmp_path / name / part
            place.mkdir(parents=True)
            (place / "A.OFF").write_text(mesh)
            (place / "._A.OFF").write_bytes(b"\0\5\x16\7")
            (place / ".hidden.off").write_text("no mesh")
    dataset = load_modelnet(tmp_path)
    assert (dataset.classes, len(dataset.train), len(dataset.test)) == (1, 1, 1)


def test_names_in_another_case_are_found(tmp_path):
    for name in ("._train.csv", "TRAIN.CSV", "Test.csv", "test.csv.GZ"):
        (tmp_path / name).write_text(name)
    assert find(tmp_path, "train.csv", "train.csv.gz").name == "TRAIN.CSV"
    assert find(tmp_path, "test.csv.gz").name == "test.csv.GZ"
    assert find(tmp_path, "other.csv") is None


def test_points_are_never_shifted_by_lost_or_doubled_bytes(tmp_path):
    """Every byte of a small binary PLY lost or doubled in turn, faces behind the vertices."""
    points = np.arange(1, 10, dtype="<f4").reshape(3, 3)
    head = "ply\nformat binary_little_endian 1.0\nelement vertex 3\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz")
    head += "element face 1\nproperty list uchar int corners\nend_header\n"
    whole = head.encode() + points.tobytes() + b"\3" + np.arange(3, dtype="<i4").tobytes()
    path = tmp_path / "a.ply"
    path.write_bytes(whole)
    assert load_points(path).tolist() == points.tolist()
    for place in range(len(head), len(whole)):
        for content in (whole[:place] + whole[place + 1 :], whole[: place + 1] + whole[place:]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"a\.ply"):
                load_points(path)


@pytest.mark.parametrize("name", ["a.npy", "a.ply", "b.ply", "a.off"])
def test_truncation_is_always_noticed(tmp_path, name):
    points = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    path = tmp_path / name
    if name == "b.ply":
        head = "ply\nformat ascii 1.0\nelement vertex 3\nproperty int x\nproperty int y\nproperty int z\nend_header\n"
        path.write_text(head + "1 2 3\n4 5 6\n7 8 9\n")
    elif name == "a.off":
        path.write_text("OFF\n3 0 0\n1 2 3\n4 5 6\n7 8 9\n")
    else:
        write_points(path, points)
    whole = path.read_bytes()
    for size in range(len(whole) - 1):  # the last byte may be the end of a line
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=name):
            load_points(path)
