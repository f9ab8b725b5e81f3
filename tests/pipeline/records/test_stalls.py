"""A disk that keeps a read waiting is named with file and seconds, and not at every read."""

from __future__ import annotations

import os

import pytest

from pipeline.records import stalls
from pipeline.records.record_file import DataFile
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stalls, "time", clock)
    return clock


@pytest.fixture
def file(tmp_path, clock, monkeypatch) -> DataFile:
    """Its disk takes so many seconds a read as `seconds` says."""
    (tmp_path / "train.rec").write_bytes(bytes(1000))
    file, real = DataFile(tmp_path / "train.rec"), os.pread

    def slow(*args) -> bytes:
        clock.now += file.seconds
        return real(*args)

    monkeypatch.setattr(os, "pread", slow)
    return file


def test_a_read_that_took_long_is_told(file, caplog):
    file.seconds = 12.4
    assert file.read(10, 90) == bytes(90)
    (told,) = caplog.messages
    assert told.startswith(
        f"{file.path}: its disk stalls: reading 90 bytes took 12 s. A copy on a local"
    )


def test_a_read_of_a_busy_disk_is_not(file, caplog):
    file.seconds = 4.9
    file.read(10, 90)
    assert not caplog.messages


def test_more_of_them_are_counted_and_told_once_a_minute(file, caplog):
    for file.seconds in (6, 20, 9, 31, 7):  # the fourth ends 60 seconds after the first
        file.read(0, 1)
    assert len(caplog.messages) == 2
    assert "took 31 s, 3 reads since the last warning up to 31 s" in caplog.messages[1]
