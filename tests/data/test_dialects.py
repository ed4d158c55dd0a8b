"""Text, PLY and OFF as other programs write them: the right points, or a refusal that says why; never shifted ones."""

import gzip
import struct

import numpy as np
import pytest

from ddeq_fast.data.files import load_points

TWO = [[1.5, 2, 3], [4, 5, -6]]
FLAT = [[1.5, 2], [4, 5]]
VERTICES = "element vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
FACES = "element face 2\nproperty list uchar int corners\n"
BODY, CORNERS = "1.5 2 3\n4 5 -6\n", "3 0 1 0\n2 1 0\n"


def ply(*elements, form="ascii"):
    return f"ply\nformat {form} 1.0\n{''.join(elements)}end_header\n"


READ = {
    "text: byte order mark": ("a.csv", "\ufeff1.5,2,3\n4,5,-6\n", TWO),
    "text: UTF-16": ("a.txt", ("x y z\n" + BODY).encode("utf-16"), TWO),
    "text: UTF-16, big end first": ("a.txt", b"\xfe\xff" + BODY.encode("utf-16-be"), TWO),
    "text: UTF-32": ("a.txt", BODY.encode("utf-32"), TWO),
    "text: CR ends lines": ("a.xyz", BODY.replace("\n", "\r"), TWO),
    "text: CR CR LF": ("a.xyz", BODY.replace("\n", "\r\r\n"), TWO),
    "text: tabs": ("a.xyz", BODY.replace(" ", "\t"), TWO),
    "text: capitals": ("A.TXT.GZ", gzip.compress(BODY.encode()), TWO),
    "text: two gzip members": ("a.txt.gz", gzip.compress(b"1.5 2 3\n") + gzip.compress(b"4 5 -6\n"), TWO),
    "text: semicolons": ("a.csv", "1.5;2;3\n4; 5;-6\n", TWO),
    "text: quoted": ("a.csv", '"x","y","z"\n"1.5","2","3"\n"4","5","-6"\n', TWO),
    "text: single quotes": ("a.csv", "'x';'y';'z'\n1.5;2;3\n4;5;-6\n", TWO),
    "text: names after //": ("a.txt", "//X;Y;Z\n1.5;2;3\n4;5;-6\n", TWO),
    "text: names after //, and a count": ("a.txt", "//X Y Z\n2\n" + BODY, TWO),
    "text: comments after //": ("a.txt", "// scanned\n1.5 2 3 // first\n4 5 -6\n", TWO),
    "text: count": ("a.xyz", "2\n" + BODY, TWO),
    "text: count and names": ("a.xyz", "2\nx y z\n" + BODY, TWO),
    "text: names and count": ("a.xyz", "x y z\n2\n" + BODY, TWO),
    "text: no count of points in one dimension": ("a.xyz", "2\n1\n2\n", [[2], [1], [2]]),
    "text: comma at line ends": ("a.csv", "x,y,z,\n1.5,2,3,\n4,5,-6,\n", TWO),
    "text: comma at line ends, not of names": ("a.csv", "x,y,z\n1.5,2,3,\n4,5,-6,\n", TWO),
    "text: semicolon at some line ends": ("a.csv", "1.5;2;3;\n4;5;-6\n", TWO),
    "text: units": ("a.csv", "x [m],y [m],z [m]\n1.5,2,3\n4,5,-6\n", TWO),
    "text: units between spaces": ("a.csv", "x (mm) y (mm) z (mm)\n" + BODY, TWO),
    "text: colours behind": ("a.csv", "X,Y,Z,r,g,b\n1.5,2,3,9,9,9\n4,5,-6,9,9,9\n", TWO),
    "text: coordinates behind": ("a.csv", "id z y x\n7 3 2 1.5\n8 -6 5 4\n", TWO),
    "text: index without a name": ("a.csv", ",x,y,z\n0,1.5,2,3\n1,4,5,-6\n", TWO),
    "text: colours behind, names in a comment": ("a.xyz", "# x y z r\n1.5 2 3 9\n4 5 -6 9\n", TWO),
    "text: a comment that names fewer columns": ("a.xyz", "# x y\n" + BODY, TWO),
    "text: other names": ("a.csv", "east,north,up\n1.5,2,3\n4,5,-6\n", TWO),
    "text: two named coordinates": ("a.csv", "x,y,weight\n1.5,2,3\n4,5,-6\n", FLAT),
    "ply: blank lines": ("a.ply", ply(VERTICES) + "\n1.5 2 3\n \n\n4 5 -6\n\n", TWO),
    "ply: blank lines before another element": ("a.ply", ply(FACES, VERTICES) + "\n" + CORNERS + "\n" + BODY, TWO),
    "ply: lists before and empty ones": ("a.ply", ply(FACES, VERTICES) + "0\n2 1 0\n" + BODY, TWO),
    "ply: elements of nothing": (
        "a.ply",
        ply("element none 0\nproperty int a\nelement bare 5\n", VERTICES, FACES) + BODY + CORNERS,
        TWO,
    ),
    "ply: capitals": ("A.PLY", ply(VERTICES.replace("float x", "float X").replace("float z", "double Z")) + BODY, TWO),
    "ply: CR ends lines": ("a.ply", (ply(VERTICES) + BODY).replace("\n", "\r"), TWO),
    "ply: byte order mark": ("a.ply", "\ufeff" + ply(VERTICES) + BODY, TWO),
    "ply: UTF-16": ("a.ply", (ply(VERTICES) + BODY).encode("utf-16"), TWO),
    "ply: tabs, and a comment before the format": (
        "a.ply",
        "ply\ncomment end_header\n" + (ply(VERTICES)[4:] + BODY).replace(" ", "\t"),
        TWO,
    ),
    "ply: lists around coordinates": (
        "a.ply",
        ply(
            "element vertex 2\nproperty float x\nproperty list uchar int a\nproperty float y\nproperty list int int b\n"
        )
        + "1.5 2 8 9 2 0\n4 0 5 1 7\n",
        FLAT,
    ),
    "off: colours": ("a.off", "OFF\n2 0 0\n1.5 2 3 255 0 0\n4 5 -6 0 255 0\n", TWO),
    "off: colours with opacity": ("a.off", "OFF\n2 0 0\n1.5 2 3 1 0 0 1\n4 5 -6 0 1 0 1\n", TWO),
    "off: COFF": ("a.OFF", "COFF\n2 1 0\n1.5 2 3 255 0 0 9\n4 5 -6 0 255 0 9\n3 0 1 0 255 0 0\n", TWO),
    "off: COFF fused": ("a.off", "COFF2 0 0\n1.5 2 3 255 0 0\n4 5 -6 0 255 0\n", TWO),
    "off: NOFF": ("a.off", "NOFF\n2 0 0\n1.5 2 3 0 0 1\n4 5 -6 0 0 1\n", TWO),
    "off: CNOFF": ("a.off", "CNOFF\n2 0 0\n1.5 2 3 0 0 1 1 1 1 1\n4 5 -6 0 0 1 1 1 1 1\n", TWO),
    "off: STOFF": ("a.off", "STOFF\n2 0 0\n1.5 2 3 0 1\n4 5 -6 1 1\n", TWO),
    "off: byte order mark, CR": ("a.off", "\ufeffOFF\r2 0 0\r1.5 2 3\r4 5 -6\r", TWO),
}


@pytest.mark.parametrize("case", READ)
def test_dialects_that_are_read(tmp_path, case):
    name, content, expected = READ[case]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert load_points(path).tolist() == expected


DIALECT = "decimal point, between white space, commas or semicolons$"
OFFS = "understood are OFF, COFF, NOFF, CNOFF and these after ST, as text"
REFUSED = {
    "decimal commas, semicolons": (
        "a.csv",
        "1,5;2,5\n3,5;4,5\n",
        rf"line 1: '1,5;2,5' may have decimal commas.*{DIALECT}",
    ),
    "decimal commas, spaces": ("a.csv", "1,5 2,5\n", f"line 1: '5 2' is no number.*{DIALECT}"),
    "decimal commas, commas": ("a.csv", "x,y\n1,5, 2,5\n", f"line 2: '1,5, 2,5' may have decimal commas.*{DIALECT}"),
    "thousands": ("a.csv", '"1,234.5","2"\n', f"line 1: .* is no number.*{DIALECT}"),
    "exponents with D": ("a.xyz", "1.0D+03 2\n", f"line 1: '1.0D\\+03' is no number.*{DIALECT}"),
    "underscores": ("a.xyz", "1_0 2\n", f"line 1: '1_0' is no number.*{DIALECT}"),
    "other comments": ("a.xyz", "% x y\n1 2\n", f"line 1: '%' is no number.*{DIALECT}"),
    "chemistry": ("a.xyz", "1\nwater\nO 1 2 3\n", f"line 3: 'O' is no number.*{DIALECT}"),
    "empty column": ("a.csv", "1,,2\n3,,4\n", f"line 1: '' is no number.*{DIALECT}"),
    "lone comma": ("a.csv", "1,2\n,\n3,4\n", "line 2: '' is no number"),
    "count too large": ("a.xyz", "3\n1 2\n3 4\n", "line 1: 3 points are promised, 2 follow$"),
    "count too small": ("a.xyz", "# c\n1\n1 2\n3 4\n", "line 2: 1 points are promised, 2 follow$"),
    "count alone": ("a.csv", "x y\n", "holds column names, but no points$"),
    "other number of names": ("a.csv", "x,y,z\n1,2\n", "line 1: 3 columns are named, but line 2 has 2$"),
    "names and an empty column": ("a.csv", "x\ty\tz\n1\t\t2\n", "line 1: 3 columns are named, but line 2 has 2$"),
    "names twice": ("a.csv", "x,X,y\n1,2,3\n", "names a coordinate twice: x, x, y$"),
    "words in a column": ("a.csv", "x,y,kind\n1,2,cat\n", "line 2: 'cat' is no number"),
    "UTF-16 without a mark": ("a.xyz", "1 2\n".encode("utf-16-le"), "line 1: .* is no number"),
    "ply: several on a line": ("a.ply", ply(VERTICES) + "1 2 3 4 5 6\n", "truncated: .* 2 x vertex, 1 lines follow$"),
    "ply: one on several lines": (
        "a.ply",
        ply(VERTICES) + "1 2 3\n4 5\n6\n",
        r"line 10: .* 2 x vertex, 3 lines follow$",
    ),
    "ply: more lines than promised": ("a.ply", ply(VERTICES) + BODY + "7 8 9\n", "line 10: lines are left over"),
    "ply: comment in the body": ("a.ply", ply(VERTICES) + "1 2 3\ncomment\n4 5 6\n", "lines are left over"),
    "ply: a face too few": (
        "a.ply",
        ply(FACES, VERTICES) + "3 0 1 0\n" + BODY + "7 8 9\n",
        r"line 11: '1\.5' is no length",
    ),
    "ply: list wrapped": (
        "a.ply",
        ply(FACES, VERTICES) + "3 0 1\n0\n2 1 0\n1 2 3\n",
        "line 10: 3 values, .* face has 4$",
    ),
    "ply: word in a record": ("a.ply", ply(FACES, VERTICES) + "1 x\n2 1 0\n" + BODY, "line 10: 'x' is no number$"),
    "ply: hexadecimal": ("a.ply", ply(VERTICES) + "0x1 2 3\n4 5 6\n", "line 8: '0x1' is no number$"),
    "ply: not finite, with lists": (
        "a.ply",
        ply("element vertex 2\nproperty float x\nproperty float y\nproperty list uchar int a\n")
        + "1 2 0\n\n1 nan 1 5\n",
        "line 10: 'nan' is not finite$",
    ),
    "ply: coordinate twice": ("a.ply", ply(VERTICES, "property float X\n") + "1 2 3 1\n4 5 6 4\n", "twice$"),
    "ply: vertices twice": ("a.ply", ply(VERTICES, VERTICES.replace("vertex", "Vertex")) + BODY + BODY, "twice$"),
    "ply: list as a coordinate": (
        "a.ply",
        ply("element vertex 1\nproperty float x\nproperty list uchar float y\n") + "1 1 2\n",
        "makes a list of a coordinate$",
    ),
    "ply: format twice": ("a.ply", "ply\nformat ascii 1.0\n" + ply(VERTICES)[4:] + BODY, "line 3: .* does not belong"),
    "ply: lengths that are no integers": (
        "a.ply",
        ply(VERTICES, "property list float int a\n"),
        "line 7: 'property list float int a' does not belong",
    ),
    "off: four coordinates": ("a.off", "4OFF\n1 0 0\n1 2 3 1\n", f"line 1: expected OFF, got '4OFF'; {OFFS}"),
    "off: n coordinates": ("a.off", "nOFF 2\n1 0 0\n1 2\n", f"line 1: expected OFF, got 'nOFF 2'; {OFFS}"),
    "off: binary": ("a.off", b"OFF BINARY\n\0\0\0\1", f"line 1: expected OFF, got 'OFF BINARY'; {OFFS}"),
    "off: normals missing": (
        "a.off",
        "NOFF\n1 0 0\n1 2 3\n",
        "line 3: a vertex has 3 coordinates, with .* 6 values, got 3$",
    ),
    "off: four values": ("a.off", "OFF\n1 0 0\n1 2 3 4\n", "line 3: a vertex has 3 coordinates, got 4$"),
    "off: more lines than promised": (
        "a.off",
        "OFF\n1 0 0\n1 2 3\n4 5 6\n",
        "line 4: .* 1 vertices and 0 faces, 2 lines follow",
    ),
    "off: a vertex among faces": ("a.off", "OFF\n1 1 0\n1 2 3\n4 5 6\n", "line 4: expected a face: .* got '4 5 6'$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_dialects_that_are_refused(tmp_path, case):
    name, content, message = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        load_points(path)


COORDINATES = struct.pack("<6f", 1.5, 2, 3, 4, 5, -6)
UNEVEN = struct.pack("<B3iB2i", 3, 0, 1, 0, 2, 1, 0)
EVEN = struct.pack("<B2iB2i", 2, 0, 1, 2, 1, 0)
LISTED = (
    "element vertex 2\nproperty list char short a\nproperty float x\nproperty float y\nproperty list uint double b\n"
)
LISTS = struct.pack("<bh2fI", 1, 7, 1.5, 2, 0) + struct.pack("<b2fId", 0, 4, 5, 1, 0.5)
BINARY = {
    "vertices": ((VERTICES,), COORDINATES, TWO),
    "lists before": ((FACES, VERTICES), UNEVEN + COORDINATES, TWO),
    "lists as long as each other before": ((FACES, VERTICES), EVEN + COORDINATES, TWO),
    "lists after": ((VERTICES, FACES), COORDINATES + UNEVEN, TWO),
    "lists inside": ((LISTED, FACES), LISTS + EVEN, FLAT),
}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("case", BINARY)
def test_binary_ply_is_read_to_its_last_byte(tmp_path, case, end):
    elements, body, expected = BINARY[case]
    path = tmp_path / "a.ply"
    head = ply(*elements, form="binary_little_endian").encode().replace(b"\n", end)
    path.write_bytes(head + body)
    assert load_points(path).tolist() == expected
    for size in range(len(body)):
        path.write_bytes(head + body[:size])
        with pytest.raises(ValueError, match=r"a\.ply is truncated: its header promises 2 .*, it holds [01]$"):
            load_points(path)
    path.write_bytes(head + body + b"\n")
    with pytest.raises(ValueError, match=r"a\.ply has 1 bytes after its end$"):
        load_points(path)


def test_binary_ply_that_went_through_as_text_is_refused(tmp_path):
    """A 10 among its bytes became 13 10."""
    body = np.array([[10, 1, 2], [3, 4, 5]], "<i4").tobytes()
    content = ply(VERTICES.replace("float", "int"), form="binary_little_endian").encode() + body
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    assert load_points(path).tolist() == [[10, 1, 2], [3, 4, 5]]
    path.write_bytes(content.replace(b"\n", b"\r\n"))
    with pytest.raises(ValueError, match=r"has 1 bytes after its end$"):
        load_points(path)


def test_a_list_of_negative_length_is_refused(tmp_path):
    path = tmp_path / "a.ply"
    path.write_bytes(ply(LISTED, form="binary_little_endian").encode() + struct.pack("<b2fI", -1, 1, 2, 0) * 2)
    with pytest.raises(ValueError, match=r"a\.ply: the list a has a length of -1$"):
        load_points(path)
