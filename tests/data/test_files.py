"""Clouds in files: every format is read back, and damage is named by file and line."""

import gzip

import numpy as np
import pytest
import torch

from ddeq_fast.data.files import load_mesh, load_points, write_points
from ddeq_fast.data.formats.off import read_mesh

POINTS = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows(points, delimiter=" "):
    return "".join(delimiter.join(f"{value:.9g}" for value in row) + "\n" for row in points.tolist())


def ply_file(form, body, *, before=(), after=(), inside=(), count=7, kind="float", end="\n"):
    head = ["ply", f"format {form} 1.0", "comment made by hand", *before, f"element vertex {count}", *inside]
    head += [*(f"property {kind} {axis}" for axis in "xyz"), *after, "end_header"]
    return (end.join(head) + end).encode() + body


@pytest.mark.parametrize("name", ["cloud.npy", "cloud.ply", "cloud.xyz"])
@pytest.mark.parametrize("dim", [2, 3])
def test_what_is_written_is_read_back_exactly(tmp_path, name, dim):
    points = torch.from_numpy(POINTS[:, :dim])
    write_points(tmp_path / name, points.double())
    loaded = load_points(tmp_path / name)
    assert loaded.dtype == torch.float32 and torch.equal(loaded, points)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_numpy_files_of_any_numbers(tmp_path, dtype):
    array = (10 * POINTS).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "one.npz", anything=array)
    np.savez_compressed(tmp_path / "many.npz", points=array, labels=np.zeros(2))
    for name in ("a.npy", "one.npz", "many.npz"):
        assert torch.equal(load_points(tmp_path / name), torch.from_numpy(array.astype(np.float32)))


@pytest.mark.parametrize(
    "name, content",
    [
        ("cloud.xyz", rows(POINTS)),
        ("cloud.txt", "# a comment\n\n" + rows(POINTS, "\t").replace("\n", "  # a note\r\n")),
        ("cloud.csv", "x, y, z\n" + rows(POINTS, ", ")),
        ("cloud.txt", "x y z\n" + rows(POINTS)[:-1]),
        ("cloud.XYZ", rows(POINTS)),
        ("cloud.csv.gz", gzip.compress(rows(POINTS, ",").encode())),
        ("cloud.off", "OFF\n7 0 0\n" + rows(POINTS)),
    ],
)
def test_text(write, name, content):
    assert torch.equal(load_points(write(name, content)), torch.from_numpy(POINTS))


FACES = ("element face 1", "property list uchar int vertex_indices")
CAMERA = ("element camera 2", "property double view", "property uchar id")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["float", "double", "float32"])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_with_other_elements_and_properties(write, form, kind, end):
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(form)
    number = {"double": "f8"}.get(kind, "f4")
    if order is None:
        vertices = "".join(f"200 {line}{end}" for line in rows(POINTS).splitlines())
        body = f"0.5 1{end}0.7 2{end}{vertices}3 0 1 2{end}".encode()
    else:
        cameras = np.array([(0.5, 1), (0.7, 2)], [("view", order + "f8"), ("id", "u1")])
        records = np.empty(7, [("red", "u1"), *((axis, order + number) for axis in "xyz")])
        records["red"] = 200
        records["x"], records["y"], records["z"] = POINTS.T
        body = cameras.tobytes() + records.tobytes() + b"\x03" + np.arange(3, dtype=order + "i4").tobytes()
    content = ply_file(form, body, before=CAMERA, inside=["property uchar red"], after=FACES, kind=kind, end=end)
    torch.testing.assert_close(load_points(write("cloud.ply", content)), torch.from_numpy(POINTS), rtol=0, atol=0)


CUBE = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n0 0 1\n1 0 1\n1 1 1\n0 1 1\n"
SQUARES = "4 0 1 2 3\n4 4 5 6 7\n4 0 1 5 4\n4 1 2 6 5\n4 2 3 7 6\n4 3 0 4 7\n"


@pytest.mark.parametrize(
    "head",
    ["OFF\n8 6 12\n", "OFF8 6 12\n", "OFF 8 6 0\n", "# comment\n\nOFF # here\n\n8 6\n", "OFF\r\n# x\r\n8 6 0\r\n"],
)
def test_off_headers_split_or_fused(write, head):
    path = write("cube.off", head + CUBE.replace("1 1 1\n", "1 1 1  # corner\n\n# half-way\n") + SQUARES)
    mesh = read_mesh(path)
    assert load_points(path).tolist() == [list(map(float, line.split())) for line in CUBE.splitlines()]
    assert mesh.triangles.shape == (12, 3)
    a, b, c = (mesh.vertices[mesh.triangles[:, i]] for i in range(3))
    assert np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2 == pytest.approx(6)


def test_off_polygons_colours_points_and_edges(write):
    faces = "3 0 1 2 255 0 0\n1 5\n5 0 1 2 3 4 0.5 0.5 0.5\n2 0 1\n"
    mesh = read_mesh(write("mixed.off", "OFF\n8 4 0\n" + CUBE + faces))
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 3, 4]]
    assert read_mesh(write("none.off", "OFF\n8 0 0\n" + CUBE)).triangles.shape == (0, 3)
    only = read_mesh(write("triangles.off", "OFF\n8 2 0\n" + CUBE + "3 0 1 2\n3 5 6 7\n"))
    assert only.triangles.tolist() == [[0, 1, 2], [5, 6, 7]]
    squares = read_mesh(write("squares.off", "OFF\n8 2 0\n" + CUBE + "4 0 1 2 3\n4 7 6 5 4\n"))
    assert squares.triangles.tolist() == [[0, 1, 2], [0, 2, 3], [7, 6, 5], [7, 5, 4]]
    edges = read_mesh(write("edges.off", "OFF\n8 2 0\n" + CUBE + "2 0 1\n2 7 6\n"))
    assert edges.triangles.shape == (0, 3)


TEXT = rows(POINTS).splitlines(keepends=True)
FAULTS = [
    ("a.xyz", "", r"a\.xyz is empty$"),
    ("a.xyz", "\n \n# nothing\n", r"a\.xyz holds no numbers$"),
    ("a.csv", "x,y\n", r"a\.csv holds column names, but no points$"),
    ("a.xyz", "# c\n" + "".join(TEXT[:3]) + "1 2\n", r"a\.xyz, line 5: 2 values, but line 2 has 3$"),
    ("a.txt", "x y\n1 2\n\n3 4 5\n", r"a\.txt, line 4: 3 values, but line 2 has 2$"),
    ("a.xyz", "1 2 3\n1 nan 3\n", r"a\.xyz, line 2: 'nan' is not finite$"),
    ("a.xyz", "nan nan nan\n1 2 3\n", r"a\.xyz, line 1: 'nan' is not finite$"),
    ("a.csv", "x,y\n1,2\n-inf,3\n", r"a\.csv, line 3: '-inf' is not finite$"),
    (
        "a.xyz",
        "1 2 3\n1 2 3\n1 2 three\n",
        r"a\.xyz, line 3: 'three' is no number; a line holds a point, .*white space, commas or",
    ),
    ("a.csv", "1,2,3\n1,,3\n", r"a\.csv, line 2: '' is no number; a line holds a point, .*white space, commas or"),
    (
        "a.xyz",
        b"1 2 3\n\xff\xfe 2 3\n",
        r"a\.xyz, line 2: .* is no number; a line holds a point, .*white space, commas or",
    ),
    ("a.xyz", "1 2 3\n1 -1e39 3\n", r"a\.xyz, line 2: '-1e39' is not finite in float32$"),
    ("a.off", "OFF\n2 0 0\n1 2 3\n1 1e300 3\n", r"a\.off, line 4: '1e300' is not finite in float32$"),
    ("a.xyz.gz", gzip.compress(b"1 2 3\n", mtime=0)[:-5], r"a\.xyz\.gz is no whole gzip file"),
    (
        "a.dat",
        "1 2 3\n",
        r"^path must end in one of \.npy, \.npz, \.ply, \.off, \.obj, \.xyz, \.txt, \.csv, got .*a\.dat$",
    ),
    ("a.off", "", r"a\.off is empty$"),
    ("a.off", "# only\n", r"a\.off holds nothing but comments$"),
    ("a.off", "OFF\n", r"a\.off is truncated: it ends after OFF$"),
    (
        "a.off",
        "COFF\n8 6 0\n" + CUBE + SQUARES,
        r"a\.off, line 3: a vertex has 3 coordinates, with .* 6 or 7 values, got 3$",
    ),
    ("a.off", "OFF\n8 six 0\n", r"a\.off, line 2: expected numbers of vertices, faces and edges, got '8 six 0'$"),
    ("a.off", "OFF\n0 0 0\n", r"a\.off, line 2: the mesh has no vertices$"),
    (
        "a.off",
        "OFF\n8 6 0\n" + CUBE + SQUARES[:-20],
        r"line 14: truncated: .* 8 vertices and 6 faces, 12 lines follow$",
    ),
    ("a.off", "OFF\n8 6 0\n", r"a\.off, line 2: truncated: .* 0 lines follow$"),
    ("a.off", "OFF\n8 0 0\n" + CUBE.replace("1 1 1", "1 1 inf"), r"a\.off, line 9: 'inf' is not finite$"),
    ("a.off", "OFF\n8 0 0\n" + CUBE.replace("1 1 1", "1 1"), r"a\.off, line 9: 2 values, but line 3 has 3$"),
    ("a.off", "OFF\n2 0 0\n0 0\n1 1\n", r"a\.off, line 3: a vertex has 3 coordinates, got 2$"),
    ("a.ply", "", r"a\.ply is empty$"),
    ("a.ply", "plywood\n", r"a\.ply, line 1: 'plywood' does not belong in the header of a PLY file$"),
    ("a.ply", "ply\nformat ascii 2.0\n", r"a\.ply, line 2: 'format ascii 2\.0' does not belong"),
    ("a.ply", "ply\nproperty float x\n", r"a\.ply, line 2: 'property float x' does not belong"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex -3\n", r"a\.ply, line 3: 'element vertex -3' does not belong"),
    (
        "a.ply",
        "ply\nformat ascii 1.0\nelement vertex 1\n",
        r"a\.ply, line 4: .* ends with end_header, this one does not$",
    ),
    (
        "a.ply",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty real x\n",
        r"line 4: 'property real x' does not belong",
    ),
    ("a.ply", ply_file("ascii", b"", count=0), r"a\.ply: its header names no vertices with x and y$"),
    ("a.ply", ply_file("ascii", "".join(TEXT[:6]).encode()), r"line 14: truncated: .*7 x vertex, 6 lines follow$"),
    ("a.ply", ply_file("ascii", b"1 2\n" * 7), r"a\.ply, line 9: expected 7 lines of 3 values, got 7 of 2$"),
    ("a.ply", ply_file("ascii", b"1 2 3\n" * 6 + b"1 2\n"), r"a\.ply, line 15: 2 values, but line 9 has 3$"),
    ("a.ply", ply_file("ascii", b"1 2 3\n" * 6 + b"1 2 nan\n"), r"a\.ply, line 15: 'nan' is not finite$"),
    (
        "a.ply",
        ply_file("binary_little_endian", POINTS.tobytes()[:-1]),
        r"a\.ply is truncated: .* 7 vertices, it holds 6$",
    ),
    (
        "a.ply",
        ply_file("binary_big_endian", np.full((7, 3), np.nan, ">f4").tobytes()),
        r"a\.ply: point 0 .* is not finite in float32: \[nan, nan, nan\]$",
    ),
    (
        "a.ply",
        ply_file("binary_big_endian", b"", before=FACES),
        r"a\.ply is truncated: its header promises 1 records of face, it holds 0$",
    ),
]


@pytest.mark.parametrize("name, content, message", FAULTS)
def test_faults_are_named(write, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_points(write(name, content))


@pytest.mark.parametrize("face", ["4 0 1 2", "3 0 1 8", "3 0 1 -1", "x 0 1 2", "0"])
def test_a_face_that_is_none_is_named(write, face):
    lines = SQUARES.splitlines()
    path = write("a.off", "OFF\n8 6 0\n" + CUBE + "\n".join([*lines[:4], face, lines[5]]))
    with pytest.raises(ValueError, match=rf"a\.off, line 15: expected a face: .* from 0 to 7; got '{face}'$"):
        read_mesh(path)


def test_a_missing_file_is_named(tmp_path):
    for name in ("a.npy", "a.npz", "a.ply", "a.off", "a.xyz"):
        with pytest.raises(FileNotFoundError, match=f"there is no file .*{name}$"):
            load_points(tmp_path / name)


def test_damaged_numpy_files_are_named(tmp_path, write):
    np.save(tmp_path / "a.npy", POINTS)
    whole = (tmp_path / "a.npy").read_bytes()
    np.savez(tmp_path / "a.npz", POINTS)
    archive = bytearray((tmp_path / "a.npz").read_bytes())
    archive[200] ^= 255
    np.savez(tmp_path / "two.npz", a=POINTS, b=POINTS)
    np.save(tmp_path / "object.npy", np.array([[None]], object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", POINTS[0])
    np.save(tmp_path / "none.npy", POINTS[:0])
    np.save(tmp_path / "complex.npy", POINTS + 1j)
    np.save(tmp_path / "nan.npy", np.where(np.arange(7)[:, None] == 4, np.inf, POINTS))
    huge = whole.replace(b"(7, 3)", b"(99999999999999, 3)")
    for name, content, message in [
        ("a.npy", whole[:-4], "is damaged"),
        ("a.npy", whole[:20], "is damaged"),
        ("a.npy", huge, "is damaged"),
        ("a.npy", b"", "is empty$"),
        ("a.npz", bytes(archive), "is damaged"),
        ("a.npz", bytes(archive)[:100], "is damaged"),
        ("two.npz", None, "must hold one array, or one called points; it holds a, b$"),
        ("object.npy", None, "is damaged, or holds something else than numbers"),
        ("flat.npy", None, r"must hold an array \(n, d\).*, got shape \(3,\) of float32$"),
        ("none.npy", None, r"must hold an array \(n, d\).*, got shape \(0, 3\) of float32$"),
        ("complex.npy", None, r"must hold an array \(n, d\) of real numbers.* complex64$"),
        ("nan.npy", None, r"point 4 \(the first is 0\) is not finite"),
    ]:
        path = tmp_path / name if content is None else write(name, content)
        with pytest.raises(ValueError, match=rf"{name}:? {message}"):
            load_points(path)


def test_a_dtype_and_tensors_beside(tmp_path):
    """A file may hold more digits than it must, or fewer, and an archive further tensors by name."""
    points = torch.from_numpy(POINTS).double() + 1e-9
    for ending in (".npy", ".npz", ".ply", ".xyz"):
        path = tmp_path / f"a{ending}"
        write_points(path, points, dtype=torch.float64)
        assert torch.equal(load_points(path, torch.float64), points)
        write_points(path, points, dtype=torch.float32)
        assert torch.equal(load_points(path, torch.float64).float(), points.float())
        with pytest.raises(
            ValueError, match=r"^dtype must be torch\.float32, torch\.float64 or None, got torch\.int64$"
        ):
            write_points(path, points, dtype=torch.int64)
        if ending != ".npz":
            with pytest.raises(ValueError, match=rf"^beside must be None for a \{ending} file, got weights$"):
                write_points(path, points, beside={"weights": points[:, 0]})
    weights = torch.arange(len(points))
    write_points(tmp_path / "a.npz", points.float(), beside={"weights": weights})
    assert torch.equal(load_points(tmp_path / "a.npz"), points.float())
    assert np.array_equal(np.load(tmp_path / "a.npz")["weights"], weights)
    with pytest.raises(ValueError, match=r"^beside must have other names than 'points'$"):
        write_points(tmp_path / "a.npz", points, beside={"points": points})
    with pytest.raises(TypeError, match=r"^beside\['weights'\] must be a torch\.Tensor, got list$"):
        write_points(tmp_path / "a.npz", points, beside={"weights": [1.0]})


def test_writing_refuses_what_does_not_fit_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.ply"
    write_points(path, torch.from_numpy(POINTS))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.ply: a PLY file holds points in 2 or 3 dimensions, got 4$"):
        write_points(path, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"^points must be finite"):
        write_points(path, torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match=r"^points must have shape \(n, d\), got \(1, 2, 3\)$"):
        write_points(path, torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"^path must end in one of \.npy, \.npz, \.ply, \.xyz, got .*a\.obj$"):
        write_points(tmp_path / "a.obj", torch.zeros(2, 3))
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere to write a\.npy to$"):
        write_points(tmp_path / "nowhere" / "a.npy", torch.zeros(2, 3))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


BINARY_MESH = np.array(POINTS, "<f4").tobytes() + b"\x03\0\0\0\0\1\0\0\0\2\0\0\0"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name",
    ["a.npy", "a.npz", "a.xyz", "a.off", "a.obj", "a.csv.gz", "ascii.ply", "binary.ply", "mesh.ply", "faces.ply"],
)
def test_whatever_is_damaged_is_read_or_refused_by_name(tmp_path, name):
    """200 files with bytes changed, lost or added: a finite cloud or mesh, or a ValueError naming it, nothing else."""
    path = tmp_path / name
    texts = {
        "a.off": ("OFF\n8 6 0\n" + CUBE + SQUARES).encode(),
        "a.obj": (
            "v " + rows(POINTS).replace("\n", "\nv ")[:-2] + "g a\nf 1 2 3 4\nf -1//2 -2/1 \\\n-3/1/1\n"
        ).encode(),
        "mesh.ply": ply_file("ascii", (rows(POINTS) + "3 0 1 2\n").encode(), after=FACES),
        "faces.ply": ply_file("binary_little_endian", BINARY_MESH, after=FACES),
        "a.csv.gz": gzip.compress(("x,y,z\n" + rows(POINTS, ",")).encode()),
        "ascii.ply": ply_file("ascii", rows(POINTS).encode()),
    }
    if name in texts:
        path.write_bytes(texts[name])
    elif name == "a.npz":
        np.savez(path, POINTS)
    else:
        write_points(path, torch.from_numpy(POINTS))
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        place, length = draw.integers(len(whole)), draw.integers(1, 5)
        added = draw.choice(np.frombuffer(b"0123456789 .-+einf\n,#\0\xff", np.uint8), length).tobytes()
        rest = whole[place + draw.choice([0, length]) :] if draw.random() < 0.8 else b""
        path.write_bytes(whole[:place] + added * int(draw.integers(2)) + rest)
        try:
            points, triangles = load_mesh(path)
            assert points.dim() == 2 and points.numel() and torch.isfinite(points).all()
            assert not len(triangles) or 0 <= triangles.min() <= triangles.max() < len(points)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("path", [None, 3, b"a.npy", ["a.npy"]])
def test_what_is_no_path(path):
    message = f"path must be a path, got {type(path).__name__}"
    with pytest.raises(TypeError, match=f"^{message}$"):
        load_points(path)
    with pytest.raises(TypeError, match=f"^{message}$"):
        write_points(path, torch.ones(1, 2))


@pytest.mark.parametrize("dtype", ["float32", torch.int64, [torch.float32]])
def test_dtypes_that_are_not_read(dtype, tmp_path):
    write_points(tmp_path / "a.npy", torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"^dtype must be torch\.float32, torch\.float64 or None, got "):
        load_points(tmp_path / "a.npy", dtype)
