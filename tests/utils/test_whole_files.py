"""Files are replaced whole or not at all: a full disk costs nothing, and killed writes leave nothing for long."""

import errno
import os

import pytest

from ddeq_fast.utils import files


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "c"
    files.write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/c'"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["c"]


def test_leftovers_of_killed_writes_are_removed(tmp_path):
    for name in (".c.abcd_123", "c", ".c.lock", ".cc.abcd_123", "abcd_123"):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == [".c.lock", ".cc.abcd_123", "abcd_123", "c"]
