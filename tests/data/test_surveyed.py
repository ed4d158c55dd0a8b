"""Which dtype a file gives: float32, but float64 where float32 would lose the cloud; and what is written comes back."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddeq_fast.commands.main import main
from ddeq_fast.data.files import load_points, write_points

METRES = np.array([694386.212, 5155487.512, 381.036]) + 0.05 * np.arange(5)[:, None]  # of a survey, 5 cm apart


@pytest.mark.parametrize("name", ["a.npy", "a.NPY", "a.ply", "a.PLY", "a.xyz", "a.Xyz"])
def test_surveyed_metres_keep_their_millimetres(tmp_path, name):
    write_points(tmp_path / name, torch.from_numpy(METRES))
    loaded = load_points(tmp_path / name)
    assert loaded.dtype == torch.float64 and np.array_equal(loaded.numpy(), METRES)
    assert torch.equal(load_points(tmp_path / name, torch.float32), torch.from_numpy(METRES).float())


def test_the_cloud_decides_not_the_file(tmp_path):
    def dtype(array, save=np.save, name="a.npy", **options):
        save(tmp_path / name, np.asarray(array), **options)
        return load_points(tmp_path / name).dtype

    draw = np.random.default_rng(0)
    assert dtype(draw.normal(size=(1000, 3))) == torch.float32
    assert dtype(draw.normal(size=(1000, 3)) + 5) == torch.float32
    assert dtype(draw.normal(size=(1000, 3)) + 500) == torch.float64
    assert dtype((draw.normal(size=(1000, 3)) + 500).astype(np.float32)) == torch.float32
    assert dtype(draw.normal(size=(1000, 3)) + 5, np.savetxt, "a.xyz") == torch.float32
    assert dtype(draw.normal(size=(1000, 3)) + 500, np.savetxt, "a.xyz") == torch.float64
    # Far apart, but in two pairs that float32 cannot tell apart.
    assert dtype([[0.0], [1.0], [1.0 + 1e-9]]) == torch.float64
    assert dtype([[0.0], [1.0], [1.0]]) == torch.float32
    assert dtype([[0.0, 0.1], [-0.0, 0.1], [9.0, 0.1]]) == torch.float32
    assert dtype([[1e-50], [2e-50]]) == torch.float64
    assert dtype([[2**24 + 1, 0]]) == torch.float64 and dtype([[2**24, 0]]) == torch.float32


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<i2", ">u8", "f2", np.longdouble])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_files_of_any_layout(tmp_path, dtype, order):
    array = np.arange(1, 13).reshape(4, 3)
    np.save(tmp_path / "a.npy", np.asarray(array.astype(dtype), order=order))
    loaded = load_points(tmp_path / "a.npy")
    assert loaded.dtype == torch.float32 and loaded.is_contiguous() and loaded.tolist() == array.tolist()


REFUSED = [
    (np.array([[2**53 + 1, 0]]), r"point 0 .* is beyond 2\*\*53"),
    (np.array([[0, 0], [0, 2**64 - 1]], np.uint64), r"point 1 .* is beyond 2\*\*53"),
    (np.array(1.0), r"got shape \(\) of float64"),
    (np.zeros((2, 2, 2)), r"got shape \(2, 2, 2\) of float64"),
    (np.zeros(2, [("x", "f4"), ("y", "f4")]), "got shape"),
    (np.zeros((2, 2), bool), "of bool"),
    (np.zeros((2, 2), "M8[s]"), "of datetime64"),
    (np.array([["1", "2"]]), "of <U1"),
    (np.array([[1e39, 0]]), "point 0 .* is not finite in float32"),
]


@pytest.mark.parametrize("array, message", REFUSED)
def test_other_numpy_files_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy.*{message}"):
        load_points(tmp_path / "a.npy")


def test_the_dtype_is_checked(tmp_path):
    np.save(tmp_path / "a.npy", METRES)
    for dtype in (torch.float16, torch.int64, "float32"):
        with pytest.raises(ValueError, match=r"^dtype must be torch\.float32, torch\.float64 or None, got"):
            load_points(tmp_path / "a.npy", dtype)
    with pytest.raises(ValueError, match=r"^points must be finite in float32"):
        write_points(tmp_path / "b.npy", torch.full((2, 2), 1e39, dtype=torch.float64))


@pytest.mark.parametrize("name", ["moved.NPY", "moved.Ply", "moved.xyz"])
def test_the_flow_keeps_surveyed_metres(tmp_path, name):
    pytest.importorskip("tqdm")
    pytest.importorskip("matplotlib")
    draw = torch.Generator().manual_seed(0)
    target = torch.from_numpy(METRES[0]) + torch.randn(60, 3, generator=draw, dtype=torch.float64) / 10
    write_points(tmp_path / "a.xyz", target)
    options = ["--particles", "40", "--steps", "30", "--backend", "dense", "--quiet", "--picture", f"{tmp_path}/a.png"]
    assert main(["flow", "--target", f"{tmp_path}/a.xyz", "--out", f"{tmp_path}/{name}", *options]) == 0
    moved = load_points(tmp_path / name)
    assert moved.dtype == torch.float64 and len(moved.unique(dim=0)) == 40
    torch.testing.assert_close(moved.mean(0), target.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(moved.std(0), target.std(0), rtol=0.3, atol=0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".npy", ".ply", ".xyz"]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.lists(st.tuples(*2 * [st.floats(-1e4, 1e4)]), min_size=1, max_size=6),
    st.sampled_from([0.0, 3e4, 1e-30]),
)
def test_what_is_written_is_read_back(tmp_path, ending, dtype, rows, offset):
    points = (torch.tensor(rows, dtype=torch.float64) + offset).to(dtype)
    write_points(tmp_path / f"a{ending}", points)
    loaded = load_points(tmp_path / f"a{ending}")
    if dtype != torch.float64:
        assert loaded.dtype == torch.float32
    assert torch.equal(loaded, points.to(loaded.dtype))
    if loaded.dtype == torch.float32:
        extent = float((points.amax(0).double() - points.amin(0).double()).max())
        assert (loaded.double() - points.double()).abs().max() <= 1e-6 * extent
