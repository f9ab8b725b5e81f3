"""Room is asked for before a byte is copied, and what lies in the folder is named."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest

from facestream import UserError
from pipeline.records.record_file import DataFile
from pipeline.staging.copier import Copier
from pipeline.staging.local_copy import LocalCopy, Original
from pipeline.staging.room import require_room

SIZE = 40_000_000


@pytest.fixture
def file(tmp_path) -> DataFile:
    path = tmp_path / "train.rec"
    with path.open("wb") as file:
        file.truncate(SIZE)
    (tmp_path / "near").mkdir()
    return DataFile(path)


def copy_of(file: DataFile, changed: int) -> LocalCopy:
    stage = file.path.parent / "near"
    return LocalCopy(stage, Original(file.path, file.size, changed, file.fingerprint))


def with_free(monkeypatch, size: int) -> None:
    disk = SimpleNamespace(f_bavail=size // 1000, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda path: disk)


def test_what_is_to_be_copied_and_what_is_free_then_is_said(file, tmp_path, monkeypatch):
    with_free(monkeypatch, 100_000_000)
    message = require_room(tmp_path / "near", [copy_of(file, 1), copy_of(file, 2)])
    assert message == "0.08 GB to copy, 0.02 GB are left free then"


def test_too_little_room_is_an_error_that_names_what_is_left_over(file, tmp_path, monkeypatch):
    old = copy_of(file, file.changed)
    Copier(file, old, range(old.count)).run(threading.Event())
    new = copy_of(file, 7)
    with_free(monkeypatch, 39_000_000)
    with pytest.raises(
        UserError, match=r"0.04 GB are to be copied there, 0.04 GB are free"
    ) as message:
        require_room(tmp_path / "near", [new])
    assert f"{old.folder} (0.04 GB, of {file.path})" in str(message.value)
    assert require_room(tmp_path / "near", [old]) == "0.00 GB to copy, 0.04 GB are left free then"


def test_what_was_copied_before_is_not_asked_for_again(file, tmp_path, monkeypatch):
    copy, stop = copy_of(file, file.changed), threading.Event()
    work = Copier(file, copy, range(copy.count))
    monkeypatch.setattr("pipeline.staging.copier._AT_ONCE", 4)
    monkeypatch.setattr(work, "_tell", stop.set)
    work.run(stop)
    with_free(monkeypatch, 30_000_000)
    require_room(tmp_path / "near", [copy_of(file, file.changed)])
    with pytest.raises(UserError, match="are to be copied"):
        require_room(tmp_path / "near", [copy_of(file, 7)])


def test_what_cannot_be_looked_into_is_named_without_its_size(file, tmp_path, monkeypatch):
    """Another user's copy, or a file that gets its name at this moment, ends no run."""
    theirs = tmp_path / "near" / "facestream-theirs"
    theirs.mkdir()
    (theirs / "train.rec.unfinished").touch()

    def gone(path, **more):
        raise FileNotFoundError(path)

    monkeypatch.setattr("pathlib.Path.lstat", gone)
    message = require_room(tmp_path / "near", [copy_of(file, 1)])
    assert f"left over: {theirs} (of unknown size, of an unknown file)" in message
