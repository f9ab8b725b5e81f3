"""A file that is written whole: its old content or the new one, on every kind of disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.whole_file import write_whole, writing_whole
from tests.bad_disk import FAULTS, break_disk


@pytest.mark.parametrize("faults", [[], FAULTS])
@pytest.mark.parametrize("content", ["Zürich\n", b"\x00\xff"])
def test_the_new_content_replaces_the_old_and_nothing_else_is_left(
    faults, content, tmp_path, monkeypatch
):
    break_disk(monkeypatch, *faults)
    file = tmp_path / "file"
    file.write_text("old")
    write_whole(file, content)
    assert file.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert os.listdir(tmp_path) == ["file"]


def test_parts_of_names_that_are_no_text_are_written_as_text(tmp_path):
    write_whole(tmp_path / "file", "Zoë \udcff")
    assert (tmp_path / "file").read_text("utf-8") == "Zoë \\udcff"


@pytest.mark.parametrize("call", [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_content(call, tmp_path, monkeypatch):
    def fail(*args, **more):
        raise OSError(errno.EIO, "Input/output error")

    file = tmp_path / "file"
    file.write_text("old")
    monkeypatch.setattr(*call, fail)
    with pytest.raises(OSError, match="Input/output error") as raised:
        write_whole(file, "new")
    assert raised.value.filename == str(file)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_two_that_write_one_file_at_once_do_not_meet(tmp_path):
    file = tmp_path / "file"
    with writing_whole(file) as first:
        first.write(b"first")
        with writing_whole(file) as second:
            second.write(b"second")
        assert file.read_bytes() == b"second"
    assert file.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_removed_an_hour_later_and_nobody_else_is_disturbed(tmp_path):
    file, others = tmp_path / "file", ["file.unfinished", "other.0123abcd.unfinished"]
    for name in ("file.0123abcd.unfinished", *others):
        (tmp_path / name).write_text("begun")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "file.89abcdef.unfinished").write_text("under way")
    write_whole(file, "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "file.89abcdef.unfinished", *others]
