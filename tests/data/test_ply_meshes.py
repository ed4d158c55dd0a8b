"""Faces of PLY files, in text and binary, alike and of several sizes."""

import struct

import numpy as np
import pytest

from ddeq_fast.data import load_mesh, load_points

SQUARE = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
VERTICES = "element vertex 4\nproperty float x\nproperty float y\nproperty float z\n"


def faces(count, name="vertex_indices", kind="int"):
    return f"element face {count}\nproperty uchar flag\nproperty list uchar {kind} {name}\n"


def content(form, polygons, head, order=("vertex", "face")):
    """A file whose faces have a flag before their corners."""
    parts = {
        "ascii": {
            "vertex": "".join(f"{x} {y} {z}\n" for x, y, z in SQUARE).encode(),
            "face": "".join(f"7 {len(p)} {' '.join(map(str, p))}\n" for p in polygons).encode(),
        },
        "binary_big_endian": {
            "vertex": np.array(SQUARE, ">f4").tobytes(),
            "face": b"".join(struct.pack(f">BB{len(p)}i", 7, len(p), *p) for p in polygons),
        },
    }[form]
    return f"ply\nformat {form} 1.0\n{head}end_header\n".encode() + b"".join(parts[name] for name in order)


FORMS = ["ascii", "binary_big_endian"]
POLYGONS = {
    "triangles": ([[0, 1, 2], [0, 2, 3]], [[0, 1, 2], [0, 2, 3]]),
    "squares": ([[3, 2, 1, 0]], [[3, 2, 1], [3, 1, 0]]),
    "mixed": ([[0, 1, 2, 3], [0, 1], [1, 2, 3]], [[0, 1, 2], [0, 2, 3], [1, 2, 3]]),
    "edges": ([[0, 1], [1, 2]], []),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", POLYGONS)
@pytest.mark.parametrize("name", ["vertex_indices", "vertex_index"])
def test_polygons_are_cut_into_triangles(tmp_path, form, case, name):
    polygons, triangles = POLYGONS[case]
    path = tmp_path / "a.ply"
    path.write_bytes(content(form, polygons, VERTICES + faces(len(polygons), name)))
    points, found = load_mesh(path)
    assert points.tolist() == SQUARE and found.tolist() == triangles and found.shape[1:] == (3,)
    path.write_bytes(content(form, polygons, faces(len(polygons), name) + VERTICES, ("face", "vertex")))
    points, found = load_mesh(path)
    assert points.tolist() == SQUARE and found.tolist() == triangles


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", ["", faces(0)])
def test_a_file_without_faces_is_a_cloud(tmp_path, form, head):
    path = tmp_path / "a.ply"
    path.write_bytes(content(form, [], VERTICES + head))
    assert load_mesh(path)[1].shape == (0, 3)


TRIANGLE = [[0, 1, 2]]
REFUSED = {
    "a corner too many": (TRIANGLE + [[1, 2, 4]], faces(2), "corners of a face must be from 0 to 3, got 4$"),
    "a negative corner": (TRIANGLE + [[1, -1, 2]], faces(2), "corners of a face .* -1"),
    "mixed, a corner too many": ([[0, 1, 2, 3], [4, 2, 1]], faces(2), "corners of a face must be from 0 to 3, got 4$"),
    "no list of corners": (TRIANGLE, faces(1, "corners"), "names faces, but no list vertex_indices or vertex_index of"),
    "corners that are no integers": (TRIANGLE, faces(1, kind="float"), "no list .* of integers$"),
    "strips": (TRIANGLE, faces(1).replace("face", "tristrips"), "has strips of triangles, which are not read"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", REFUSED)
def test_faces_that_are_refused(tmp_path, form, case):
    polygons, head, message = REFUSED[case]
    path = tmp_path / "a.ply"
    path.write_bytes(content(form, polygons, VERTICES + head))
    with pytest.raises(ValueError, match=rf"a\.ply.*{message}"):
        load_mesh(path)
    assert load_points(path).tolist() == SQUARE  # vertices are none the worse


def test_corners_that_are_no_numbers_are_named_with_their_line(tmp_path):
    path = tmp_path / "a.ply"
    path.write_bytes(content("ascii", [[0, 1, 2]], VERTICES + faces(1)).replace(b"7 3 0 1 2", b"7 3 0 1.5 2"))
    with pytest.raises(
        ValueError, match=r"a\.ply, line 15: corners of a face are numbers of vertices, got '0 1\.5 2'$"
    ):
        load_mesh(path)


def test_faces_in_the_plane_are_refused(tmp_path):
    path = tmp_path / "a.ply"
    head = VERTICES.replace("property float z\n", "property float w\n")
    path.write_bytes(content("ascii", TRIANGLE, head + faces(1)))
    with pytest.raises(ValueError, match=r"a\.ply has faces, but points in 2 dimensions$"):
        load_mesh(path)
