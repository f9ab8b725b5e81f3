"""A disk that keeps a read waiting is named with file and seconds, and not at every read."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.containers.folder import FolderImages, scan_folder
from pipeline.passed_over import PassedOver
from pipeline.records import stalls
from pipeline.records.record_file import DataFile
from pipeline.records.recordio import RecordError
from tests.clock import LIMIT, Clock, wait_until

ROOT = Path(__file__).parents[3]


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


def test_a_read_that_took_long_is_reported(file, caplog):
    file.seconds = 12.4
    assert file.read(10, 90) == bytes(90)
    (said,) = caplog.messages
    assert said.startswith(
        f"{file.path}: its disk stalls: reading 90 bytes took 12 s. A copy on a local"
    )


def test_a_read_of_a_busy_disk_is_not(file, caplog):
    file.seconds = 4.9
    file.read(10, 90)
    assert not caplog.messages


def test_more_of_them_are_counted_and_reported_once_a_minute(file, caplog):
    for file.seconds in (6, 20, 9, 31, 7):  # the fourth ends 60 seconds after the first
        file.read(0, 1)
    assert len(caplog.messages) == 2
    assert "took 31 s, 3 reads since the last warning up to 31 s" in caplog.messages[1]


def test_a_read_that_does_not_return_is_named_while_it_hangs(tmp_path, clock, monkeypatch, caplog):
    """Of two threads that wait; once a minute, and again when it has returned."""
    (tmp_path / "train.rec").write_bytes(bytes(1000))
    file, begun, answer = DataFile(tmp_path / "train.rec"), [], threading.Event()

    def hang(descriptor: int, length: int, offset: int) -> bytes:
        begun.append(offset)
        assert answer.wait(LIMIT)
        return bytes(length)

    monkeypatch.setattr(os, "pread", hang)
    monkeypatch.setattr(stalls, "_LONG", 0.01)
    with ThreadPoolExecutor(2) as threads, stalls.stalls_logged():
        reads = [threads.submit(file.read, place, 90) for place in (10, 100)]
        wait_until(lambda: len(begun) == 2)
        assert not caplog.messages
        for clock.now, said in ((7.0, 1), (66.0, 1), (67.0, 2)):
            wait_until(lambda said=said: len(caplog.messages) >= said)
            file._stalls.look()
            assert len(caplog.messages) == said
        answer.set()
        assert [read.result(LIMIT) for read in reads] == [bytes(90)] * 2
    *during, after = caplog.messages
    for message, seconds in zip(during, (7, 67), strict=True):
        assert f"{file.path}: its disk stalls: reading 90 bytes takes {seconds} s by n" in message
        assert "2 reads wait" in message
    assert "reading 90 bytes took 67 s" in after


def test_so_is_one_that_fails_at_last(file, clock, monkeypatch, caplog):
    """And then it waits no longer."""

    def fail(*_: int) -> bytes:
        clock.now += 30
        raise OSError("gone")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(RecordError, match="gone"):
        file.read(0, 90)
    clock.now += 300
    file._stalls.look()
    (said,) = caplog.messages
    assert "took 30 s" in said


def test_so_are_the_images_of_a_folder(tmp_path, clock, monkeypatch, caplog):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"\xff\xd8\xff" + bytes(97))
    content = scan_folder(tmp_path, PassedOver())
    (read,) = FolderImages(tmp_path, content).sources(content.records)
    real = os.read

    def slow(*given: int) -> bytes:
        clock.now += 6
        return real(*given)

    monkeypatch.setattr(os, "read", slow)
    assert len(read()) == 100
    assert f"{tmp_path}: its disk stalls: reading 100 bytes took 6 s" in caplog.text


# A thread holds what the watcher holds for microseconds until the fork has begun, and a little on.
_FORK = """
import os, sys, threading, time
from pathlib import Path
from pipeline.records import stalls

held, forking = threading.Event(), threading.Event()

def hold():
    with stalls._lock:
        held.set()
        forking.wait()
        time.sleep(0.2)

thread = threading.Thread(target=hold)
thread.start()
held.wait()
forking.set()
if os.fork() == 0:
    os._exit(7 if stalls._lock.locked() else 0)
thread.join()
assert stalls._lock.acquire(blocking=False), "the parent's is free, too"
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_fork_waits_for_the_watcher_so_that_its_child_can_open_files():
    """In a process of its own, of which nothing else is forked."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _FORK], timeout=LIMIT, cwd=ROOT)
    assert done.returncode == 0
