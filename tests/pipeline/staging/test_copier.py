"""Copies are byte for byte the source, whoever is killed, and readers never see what is not."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.records.record_file import DataFile
from pipeline.records.recordio import RecordError
from pipeline.staging import copier
from pipeline.staging.copier import Copier
from pipeline.staging.local_copy import LocalCopy, Original
from tests.clock import wait_until

PIECE = 100
CONTENT = np.random.default_rng(0).bytes(19 * PIECE + 37)


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "far" / "train.rec"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def stage(tmp_path) -> Path:
    (tmp_path / "near").mkdir()
    return tmp_path / "near"


def opened(source: Path, stage: Path) -> DataFile:
    """As a process opens it at its start."""
    file = DataFile(source)
    original = Original(source, file.size, file.changed, file.fingerprint)
    file.copy = LocalCopy(stage, original, piece=PIECE)
    return file


def copier_of(file: DataFile) -> Copier:
    assert isinstance(file.copy, LocalCopy)
    return Copier(file, file.copy, range(file.copy.count))


def copy_all(source: Path, stage: Path) -> DataFile:
    file = opened(source, stage)
    copier_of(file).run(threading.Event())
    return file


def require_true(file: DataFile) -> int:
    """What the copy has is the source's; returns how many pieces it has."""
    file.check_unchanged()
    spans = [(at, min(PIECE, file.size - at)) for at in range(0, file.size, PIECE)]
    there = [span for span in spans if file.copy.has(*span)]
    for at, length in there:
        assert file.copy.read(at, length) == CONTENT[at : at + length]
    assert file.copy.copied == sum(length for _, length in there)
    return len(there)


def fail_read_source(monkeypatch) -> None:
    def gone(*_: int) -> bytes:
        raise AssertionError("the source is read")

    monkeypatch.setattr(DataFile, "read_source", gone)


def test_a_copy_is_read_from_then_on_and_by_the_next_start_alone(source, stage, monkeypatch):
    file = copy_all(source, stage)
    assert file.copy.is_whole
    assert file.copy.whole.read_bytes() == CONTENT
    assert sorted(os.listdir(file.copy.folder)) == ["about.json", "lock", "train.rec"]
    later = opened(source, stage)
    fail_read_source(monkeypatch)
    for one in (file, later):
        assert one.read(150, 400) == CONTENT[150:550]
        one.will_need(0, one.size)
    source.unlink()
    later.check_unchanged()
    assert later.read(0, later.size) == CONTENT


def test_another_process_reads_what_is_there_and_the_rest_from_the_source(
    source, stage, monkeypatch
):
    """Stopped after each sync of two pieces, read by one who opened before anything was there."""
    monkeypatch.setattr(copier, "_AT_ONCE", 2)
    reader, stop = opened(source, stage), threading.Event()
    writer = copier_of(opened(source, stage))
    monkeypatch.setattr(writer, "_tell", stop.set)
    far: list[tuple[int, int]] = []
    monkeypatch.setattr(reader, "read_source", lambda *span: far.append(span) or b"far")
    for pieces in (2, 4, 6):
        stop.clear()
        writer.run(stop)
        assert require_true(reader) == pieces
        assert reader.read(150, 40) == CONTENT[150:190]
        assert reader.read(pieces * PIECE - 1, 2) == b"far", "a piece of it is not there"
        assert far.pop() == (pieces * PIECE - 1, 2)
        assert not far


CALLS = ("open", "pwrite", "pread", "write", "fsync", "truncate", "unlink", "rename", "replace")


def die_at(call: int) -> None:
    """SIGKILL this process at its so-many-th call of the system, before or after it."""
    number = itertools.count()
    for name in CALLS:
        real = getattr(os, name)

        def counted(*args, real=real, **more):
            if next(number) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **more)
            if next(number) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(os, name, counted)


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing_that_was_listed(source, tmp_path, monkeypatch):
    """A child is killed at its first call, another at its second, …, until one comes through."""
    monkeypatch.setattr(copier, "_AT_ONCE", 3)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # what a process wrote outlives it
    source.write_bytes(CONTENT[: 5 * PIECE + 37])
    seen = set()
    for call in itertools.count():
        stage = tmp_path / f"near{call}"
        stage.mkdir()
        child = os.fork()
        if not child:
            die_at(call)
            copy_all(source, stage)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        reader = opened(source, stage)
        seen.add(require_true(reader))
        assert reader.copy.is_whole or not reader.copy.whole.exists()
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        if reader.copy.pieces.exists():  # as a power cut may leave it
            with reader.copy.pieces.open("ab") as file:
                file.write(b"4 abc")
        assert require_true(opened(source, stage)) == require_true(reader)
        assert copy_all(source, stage).copy.whole.read_bytes() == source.read_bytes()
    assert seen == {0, 3, 6}


def test_of_two_processes_one_copies_and_the_other_takes_over_when_it_ends(
    source, stage, monkeypatch
):
    monkeypatch.setattr(copier, "_LOOK", 0.01)
    second = opened(source, stage)
    second.copy.folder.mkdir()
    with (second.copy.folder / "lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        looked = threading.Event()
        refresh = second.copy.refresh
        monkeypatch.setattr(second.copy, "refresh", lambda: looked.set() or refresh())
        thread = threading.Thread(target=copier_of(second).run, args=(threading.Event(),))
        thread.start()
        wait_until(looked.is_set)
        assert sorted(os.listdir(second.copy.folder)) == ["lock"], "it waits"
    thread.join()
    assert second.copy.whole.read_bytes() == CONTENT


def test_who_waits_sees_that_the_other_is_done(source, stage, monkeypatch):
    monkeypatch.setattr(copier, "_LOOK", 0.01)
    monkeypatch.setattr(Copier, "_take", staticmethod(lambda lock: False))
    waiting, other = opened(source, stage), opened(source, stage)
    other.copy.folder.mkdir()
    thread = threading.Thread(target=copier_of(waiting).run, args=(threading.Event(),))
    thread.start()
    with copier._Unfinished.opened(other.copy) as unfinished:
        for number in range(other.copy.count):
            content = CONTENT[number * PIECE : (number + 1) * PIECE]
            unfinished.write(number, content)
            unfinished.note([number])
    thread.join()
    assert waiting.copy.is_whole


def test_a_source_that_changed_has_a_copy_of_its_own(source, stage):
    first = copy_all(source, stage)
    content = CONTENT[:-1] + b"?"
    source.write_bytes(content)
    os.utime(source, ns=(1, 1))
    later = copy_all(source, stage)
    assert later.copy.folder != first.copy.folder
    assert later.copy.whole.read_bytes() == content
    assert first.copy.whole.read_bytes() == CONTENT
    assert first.read(0, first.size) == CONTENT, "a run that began with it goes on with it"


def test_a_source_that_changes_meanwhile_ends_the_copying(source, stage, monkeypatch, caplog):
    monkeypatch.setattr(copier, "_AT_ONCE", 3)
    file = opened(source, stage)
    work = copier_of(file)
    monkeypatch.setattr(work, "_tell", lambda: source.write_bytes(bytes(len(CONTENT))))
    with caplog.at_level(logging.WARNING):
        work.run(threading.Event())
    assert "it was changed meanwhile. 0.00 of 0.00 GB are there and are used" in caplog.text
    assert file.copy.copied == 3 * PIECE
    with pytest.raises(RecordError, match="was overwritten"):
        file.check_unchanged()


def test_a_disk_that_is_full_ends_the_copying_and_not_the_run(source, stage, monkeypatch, caplog):
    monkeypatch.setattr(copier, "_AT_ONCE", 3)
    room, real = iter(range(7)), os.pwrite

    def write(*args) -> int:
        if next(room, None) is None:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "pwrite", write)
    file = copy_all(source, stage)
    assert "No space left on device" in caplog.text
    assert "the next start goes on" in caplog.text
    assert require_true(file) == 6
    assert file.read(0, file.size) == CONTENT
    monkeypatch.undo()
    assert copy_all(source, stage).copy.whole.read_bytes() == CONTENT


def test_a_disk_that_gives_back_other_bytes_is_not_used(source, stage, monkeypatch, caplog):
    file, real = opened(source, stage), os.pwrite
    monkeypatch.setattr(
        os,
        "pwrite",
        lambda fd, data, at: real(fd, bytes(data).replace(CONTENT[150:152], b"??"), at),
    )
    copier_of(file).run(threading.Event())
    assert "gives back other bytes than were written" in caplog.text
    assert file.copy.copied == 0
    assert file.read(100, 100) == CONTENT[100:200]


def test_a_disk_that_hangs_does_not_keep_the_process_from_ending(source, stage):
    """The interpreter ends where it waits for no thread of the copier's."""
    script = f"""
import threading
from pathlib import Path
from pipeline.staging import copier
from tests.pipeline.staging.test_copier import copier_of, opened

hangs = threading.Event()
copier._Unfinished.commit = lambda *_: (hangs.set(), threading.Event().wait())
work = copier_of(opened(Path({str(source)!r}), Path({str(stage)!r})))
threading.Thread(target=work.run, args=[threading.Event()], daemon=True).start()
assert hangs.wait(60)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_copy_that_was_damaged_since_is_made_again(source, stage, caplog):
    path = copy_all(source, stage).copy.whole
    path.write_bytes(bytes(len(CONTENT)))
    file = opened(source, stage)
    assert "is not what was copied there: not used" in caplog.text
    assert file.read(0, 100) == CONTENT[:100]
    copier_of(file).run(threading.Event())
    assert path.read_bytes() == CONTENT


def test_a_copy_that_fails_while_it_is_read_is_left_for_the_source(source, stage, caplog):
    file = copy_all(source, stage)
    os.truncate(file.copy.whole, 500)
    assert file.read(480, 100) == CONTENT[480:580]
    assert file.read(480, 10) == CONTENT[480:490]
    assert caplog.text.count("train.rec is read instead") == 1
    source.unlink()
    with pytest.raises(RecordError, match="is gone"):
        file.check_unchanged()


def test_a_folder_that_cannot_be_written_is_reported_and_the_run_goes_on(source, stage, caplog):
    (stage / opened(source, stage).copy.folder.name).write_bytes(b"a file")
    file = copy_all(source, stage)
    assert "is no longer copied to" in caplog.text
    assert file.read(0, 5) == CONTENT[:5]


def test_a_copy_that_was_killed_before_it_got_its_name_gets_it(source, stage, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(copier._Unfinished, "finish", lambda self: None)
        left = copy_all(source, stage)
    assert left.copy.is_whole
    assert not left.copy.whole.exists()
    assert copy_all(source, stage).copy.whole.read_bytes() == CONTENT


def test_a_list_that_is_damaged_in_any_byte_makes_nothing_readable_that_is_not_there(
    source, stage, monkeypatch, caplog
):
    monkeypatch.setattr(copier, "_AT_ONCE", 2)
    file, stop = opened(source, stage), threading.Event()
    begun = copier_of(file)
    monkeypatch.setattr(begun, "_tell", stop.set)
    begun.run(stop)
    caplog.set_level(logging.CRITICAL)
    listed = file.copy.pieces.read_bytes()
    for at, byte in itertools.product(range(len(listed) // 2), b"\x009"):
        file.copy.pieces.write_bytes(listed[:at] + bytes([byte]) + listed[at + 1 :])
        assert require_true(opened(source, stage)) <= 2
    # A kill leaves the list so: the next start makes the copy again.
    file.copy.pieces.write_bytes(b"a\0b\n" + listed)
    copy_all(source, stage)
    assert copy_all(source, stage).copy.whole.read_bytes() == CONTENT


def test_a_whole_that_is_not_the_source_is_read_no_more(source, stage, monkeypatch, caplog):
    monkeypatch.setattr(copier, "fingerprint", lambda path: "another")
    file = copy_all(source, stage)
    assert "the whole is not what the source was" in caplog.text
    assert require_true(file) == 0
    assert file.read(0, file.size) == CONTENT
