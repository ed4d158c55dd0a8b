"""Reading files strictly: where a data set lies, bytes, lines of text. Errors name the file."""

from __future__ import annotations

import codecs
import gzip
import os
import zlib
from pathlib import Path

from ddeq_fast.utils.validation import check_path

VARIABLE = "DDEQ_FAST_DATA"
# What is packed may be larger than the file by this factor (real clouds: 2 to 20; deflate's limit is 1,032), and in any
# case so large.
MOST_UNPACKED = 100
_UNPACKED_FREELY = 16 << 20
_BLOCK = 1 << 20
_MARKS = {  # byte order marks; those of UTF-32 begin with those of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def data_folder(name: str, root: str | os.PathLike[str] | None, expected: str) -> Path:
    """The folder of a data set: `root`, or `name` inside the folder that the environment variable DDEQ_FAST_DATA names.

    Raises FileNotFoundError saying where it looked and what is `expected` there, TypeError for a root that is no path.
    """
    if root is None and not os.environ.get(VARIABLE):
        raise FileNotFoundError(
            f"{name}: no folder given: pass root, or set {VARIABLE} to a folder that holds {name}/; expected {expected}"
        )
    folder = Path(os.environ[VARIABLE], name) if root is None else check_path("root", root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: there is no folder {folder}; expected {expected}")
    return folder


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is no data by its name: hidden, among them macOS's ._name, or of a Mac's archive."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def find(folder: Path, *names: str) -> Path | None:
    """The file of the first of these names that the folder holds; another case of the letters will do."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    lower = {name.lower(): path for name, path in files.items()}
    return next((path for name in names if (path := files.get(name) or lower.get(name.lower()))), None)


def read_bytes(path: Path) -> bytes:
    """What a file holds, unpacked if its name ends in .gz.

    Raises FileNotFoundError if there is no such file, ValueError if it is empty, no whole gzip file, or one that grows
    more than a hundredfold to more than 16 MiB.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    content = _unpack(path) if path.suffix.lower() == ".gz" else path.read_bytes()
    if not content:
        raise ValueError(f"{path} is empty")
    return content


def check_unpacked(path: Path, packed: int, unpacked: int) -> None:
    """Raises ValueError if `packed` bytes of a file become so many that they hardly are data, before all are made."""
    if unpacked > max(_UNPACKED_FREELY, MOST_UNPACKED * packed):
        raise ValueError(
            f"{path} unpacks to more than {MOST_UNPACKED} times its size, which clouds hardly do; if it is meant, "
            "unpack it by hand"
        )


def _unpack(path: Path) -> bytes:
    blocks, size = [], 0
    try:
        with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as file:
            while block := file.read(_BLOCK):
                blocks.append(block)
                size += len(block)
                check_unpacked(path, packed.tell(), size)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}") from error
    return b"".join(blocks)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; bytes that are no text become a character that no number has."""
    return split_lines(unmarked(read_bytes(path)))


def unmarked(content: bytes) -> bytes:
    """Text in UTF-8 without a byte order mark, from text with one of UTF-8, UTF-16 or UTF-32; or as it is."""
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            text = content[len(mark) :]
            return text if name == "utf-8" else text.decode(name, errors="replace").encode()
    return content


def split_lines(content: bytes) -> list[str]:
    """Lines without their ends, which are LF, CRLF or CR; a last one that is empty is left out."""
    text = content.decode("utf-8", errors="replace")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines
