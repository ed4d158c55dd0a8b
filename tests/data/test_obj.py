"""OBJ meshes as programs write them: the right triangles, or a refusal that names the line."""

import gzip

import numpy as np
import pytest

from ddeq_fast.data import load_mesh, load_points
from ddeq_fast.data.formats.obj import read_mesh

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
CORNERS = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
FAN = [[0, 1, 2], [0, 2, 3]]
READ = {
    "polygon": (SQUARE + "f 1 2 3 4\n", FAN),
    "triangles": (SQUARE + "f 1 2 3\nf 1 3 4\n", FAN),
    "textures": (SQUARE + "vt 0 0\nf 1/1 2/1 3/1 4/1\n", FAN),
    "normals without textures": (SQUARE + "vn 0 0 1\nf 1//1 2//1 3//1 4//1\n", FAN),
    "textures and normals": (SQUARE + "vt 0 0\nvn 0 0 1\nf 1/1/1 2/1/1 3/1/1 4/1/1\n", FAN),
    "textures and normals that are not there": (SQUARE + "f 1/7/9 2// 3/ 4\n", FAN),
    "counted backwards": (SQUARE + "f -4 -3 -2 -1\n", FAN),
    "counted backwards, with all": (SQUARE + "f -4/-1/-1 -3/-2/-2 -2/-1/-1 -1//-1\n", FAN),
    "counted backwards from where the face stands": (
        "v 0 0 0\nv 1 0 0\nv 1 1 0\nf -3 -2 -1\nv 0 1 0\nf -4 -2 -1\n",
        FAN,
    ),
    "faces above their vertices": ("f 1 2 3 4\n" + SQUARE, FAN),
    "groups, objects and materials": (
        "mtllib a.mtl\no one\ng left # it\nusemtl red\ns off\n" + SQUARE + "f 1 2 3\no two\ng\ns 1\nf 1 3 4\n",
        FAN,
    ),
    "points and lines": (SQUARE + "p 1 2\nl 1 2 3\nl 1/1 2/2\nf 1 2 3 4\n", FAN),
    "continued": (SQUARE.replace("v 1 1 0", "v 1 \\\n  1 \\\n 0") + "f 1 2 \\\n3 \\\n4\n", FAN),
    "comments, tabs, blank lines, CRLF": (
        "# made\r\n\r\n" + SQUARE.replace("\n", "  # corner\r\n").replace(" ", "\t") + "f\t1 2 3  4 # \r\n# end \\\r\n",
        FAN,
    ),
    "weights": (SQUARE.replace("\n", " 1.0\n") + "f 1 2 3 4\n", FAN),
    "colours": (SQUARE.replace("\n", " .5 .5 0\n") + "f 1 2 3 4\n", FAN),
    "only vertices": (SQUARE, []),
    "no end of the last line": (SQUARE + "f 1 2 3 4", FAN),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_read(tmp_path, case):
    text, triangles = READ[case]
    path = tmp_path / "a.obj"
    path.write_bytes(text.encode())
    mesh = read_mesh(path)
    assert mesh.vertices.tolist() == CORNERS and mesh.triangles.tolist() == triangles
    assert mesh.triangles.dtype == np.int64 and mesh.triangles.shape[1] == 3
    assert load_points(path).tolist() == CORNERS


def test_a_packed_file_in_capitals(tmp_path):
    path = tmp_path / "A.OBJ.GZ"
    path.write_bytes(gzip.compress((SQUARE + "f 1 2 3 4\n").encode()))
    points, triangles = load_mesh(path)
    assert points.tolist() == CORNERS and triangles.tolist() == FAN


FACE = "expected a face: three corners or more, v, v/vt, v//vn or v/vt/vn, with v from 1, or from -1 to -4; got"
REFUSED = {
    "empty": ("", "is empty$"),
    "no vertices": ("# nothing\no one\n", "holds no vertices$"),
    "two coordinates": ("v 0 0\nv 1 1\n", "line 1: a vertex has 3 coordinates, got 2$"),
    "mixed": ("\n" + SQUARE + "v 1 1\n", "line 6: 2 values, but line 2 has 3$"),
    "no number": (SQUARE + "v 1 x 1\n", "line 5: 'x' is no number$"),
    "no coordinates": (SQUARE + "v\n", "line 5: .* is no number"),
    "not finite": (SQUARE + "# c\nv 1 nan 1\n", "line 6: 'nan' is not finite$"),
    "not finite in float32": (SQUARE + "v 1 1e39 1\n", "line 5: '1e39' is not finite in float32$"),
    "a corner of zero": (SQUARE + "f 0 1 2\n", f"line 5: {FACE} '0 1 2'$"),
    "a corner too far back": (SQUARE + "f -5 -2 -1\n", f"line 5: {FACE} '-5 -2 -1'$"),
    "a corner beyond the end": (SQUARE + "\nf 1 2 5\n", "line 6: a face has vertex 5, the file 4$"),
    "two corners": (SQUARE + "f 1 2\n", f"line 5: {FACE} '1 2'$"),
    "no corners": (SQUARE + "f\n", f"line 5: {FACE} ''$"),
    "corners that are no integers": (SQUARE + "f 1 2 3.0\n", f"line 5: {FACE}"),
    "a fourth index": (SQUARE + "f 1/1/1/1 2 3\n", f"line 5: {FACE}"),
    "an index that is too long": (SQUARE + f"f 1 2 {'9' * 30}\n", f"line 5: {FACE}"),
    "a texture that is no integer": (SQUARE + "f 1/a 2 3\n", f"line 5: {FACE}"),
    "free-form geometry": (SQUARE + "cstype bspline\n", "line 5: 'cstype bspline' does not belong in an OBJ file"),
    "another word": ("solid cube\n" + SQUARE, "line 1: 'solid cube' does not belong in an OBJ file"),
    "a number alone": (SQUARE + "1 2 3\n", "line 5: '1 2 3' does not belong in an OBJ file"),
    "continued by nothing": (SQUARE + "f 1 2 \\\n", "line 5: truncated: a line that is to continue is the last$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path, case):
    text, message = REFUSED[case]
    path = tmp_path / "a.obj"
    path.write_text(text)
    for read in (load_points, load_mesh):
        with pytest.raises(ValueError, match=rf"a\.obj,? {message}"):
            read(path)


def test_a_continued_line_keeps_the_numbers_of_those_below(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text(SQUARE.replace("v 1 0 0", "v 1 \\\n0 \\\n0") + "f 1 2 9\n")
    with pytest.raises(ValueError, match=r"a\.obj, line 7: a face has vertex 9, the file 4$"):
        read_mesh(path)
