"""Why the system refuses a file is said, with a remedy; mistakes of ours keep their trace."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.named_path import PathError, check_path, mendable, read_text


def spoil(folder: Path, how: str, *, file: bool = True) -> str:
    """A path that cannot be used, each in its own way."""
    (folder / "file").write_text("x")
    if how == "missing":
        return str(folder / "missing")
    if how == "the other kind":
        return str(folder if file else folder / "file")
    if how == "below a file":
        return str(folder / "file" / "x.rec")
    if how == "too long":
        return str(folder / ("x" * 300))
    if how == "a dangling link":
        (folder / "link").symlink_to("nowhere")
        return str(folder / "link")
    if how == "a loop of links":
        (folder / "loop").symlink_to("loop")
        return str(folder / "loop")
    if how == "NUL":
        return f"{folder}/a\0b"
    assert how == "forbidden"
    return str(folder / "file" if file else folder)


REASONS = {
    "missing": "does not exist",
    "below a file": "leads through a file",
    "too long": "longer name",
    "a dangling link": "is a link to nowhere, which does not exist",
    "a loop of links": "leads back to itself",
    "NUL": "is no name of a file",
    "forbidden": "may not be used by this user",
}


def forbid(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """As chmod 000 does to all but root, who runs tests."""
    stat = os.stat

    def refuse(name, *args, **keywords):
        if str(name) == path:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(name, *args, **keywords)

    monkeypatch.setattr(os, "stat", refuse)


@pytest.mark.parametrize("file", [True, False], ids=["file", "folder"])
@pytest.mark.parametrize("how", [*REASONS, "the other kind"])
def test_what_cannot_be_used_is_named_with_the_reason(tmp_path, monkeypatch, how, file):
    path = spoil(tmp_path, how, file=file)
    if how == "forbidden":
        forbid(monkeypatch, path)
    reason = REASONS.get(how, "is a folder" if file else "is a file")
    with pytest.raises(PathError) as caught:
        check_path(path, called=f"--rec {path}", expected="a set", file=file, folder=not file)
    message = str(caught.value)
    assert reason in message
    assert "expected a set" in message
    assert "--rec" in message
    assert "\0" not in message
    assert "\n" not in message


@pytest.mark.parametrize("folder", [True, False])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, folder):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PathError, match="a is a pipe, a socket or a device: expected a set"):
        check_path(tmp_path / "pipe", called="a", expected="a set", folder=folder)


def test_what_can_be_used_passes(tmp_path):
    (tmp_path / "file").touch()
    check_path(tmp_path / "file", called="a", expected="b")
    check_path(tmp_path, called="a", expected="b", file=False, folder=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, 9999])
def test_a_refusal_names_the_file_and_a_remedy(number):
    line = mendable(OSError(number, "Some reason", "/data/a.rec"))
    assert line is not None
    assert line.startswith("/data/a.rec ")
    assert ". " in line, "a remedy follows"


def test_a_full_disk_is_named_though_the_system_names_no_file():
    assert "no room" in mendable(OSError(errno.ENOSPC, "No space left on device"))


def test_what_is_about_no_file_is_a_mistake_of_ours():
    assert mendable(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert mendable(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")) is None


def test_text_that_is_none_is_named(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"identity \xff3")
    with pytest.raises(PathError, match=r"list\.txt is not text: .* at byte 9\. Save it as UTF-8"):
        read_text(tmp_path / "list.txt")


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbffile,label")
    assert read_text(tmp_path / "list.csv") == "file,label"
