"""Files that a run writes beside its checkpoints outlive their disk, piece by piece."""

from __future__ import annotations

import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from training.reporting import outlet
from training.reporting.outlet import AppendedFile, Outlet


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file grows beyond as many bytes: what crosses that is written in part, then fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def messages() -> list[str]:
    return []


def test_a_failure_is_said_once_counted_and_over_when_it_works_again(messages):
    place = Outlet("a place", tell=messages.append)

    def fail() -> None:
        raise OSError(28, "No space left on device")

    assert place.attempt(lambda: None)
    assert [place.attempt(fail) for _ in range(3)] == [False] * 3
    assert messages == [
        "a place: [Errno 28] No space left on device. The run goes on and tries again"
    ]
    assert place.attempt(lambda: None)
    assert place.attempt(lambda: None)
    assert messages[1:] == ["a place can be written again, after 3 failures"]


def test_what_is_no_fault_of_the_place_is_raised(messages):
    with pytest.raises(ZeroDivisionError):
        Outlet("a place", tell=messages.append).attempt(lambda: 1 / 0)


def test_a_full_disk_takes_no_part_of_a_piece_and_gets_all_of_it_later(tmp_path, messages):
    file = AppendedFile(tmp_path / "lines", tell=messages.append)
    file.append(b"first\n")
    with disk_of(10):
        file.append(b"second\n")
        file.append(b"third\n")
        assert (tmp_path / "lines").read_bytes() == b"first\n"
    file.append(b"fourth\n")
    assert (tmp_path / "lines").read_bytes() == b"first\nsecond\nthird\nfourth\n"
    assert len(messages) == 2
    assert "File too large" in messages[0]
    assert messages[1].endswith("lines can be written again, after 2 failures")


def test_a_folder_that_is_gone_with_its_parent_gets_what_came_meanwhile(tmp_path, messages):
    """The folder alone is made again; where its parent is gone, a disk may be."""
    run = tmp_path / "run"
    run.mkdir()
    file = AppendedFile(run / "tensorboard" / "events", head=b"head ", tell=messages.append)
    file.append(b"1")
    shutil.rmtree(run)
    file.append(b"2")
    file.append(b"3")
    assert not run.exists()
    run.mkdir()
    file.append(b"4")
    assert (run / "tensorboard" / "events").read_bytes() == b"head 234"
    assert len(messages) == 2


def test_a_file_that_was_removed_begins_with_its_head_again(tmp_path, messages):
    file = AppendedFile(tmp_path / "events", head=b"head ", tell=messages.append)
    file.append(b"1")
    file.append(b"2")
    assert (tmp_path / "events").read_bytes() == b"head 12"
    (tmp_path / "events").unlink()
    file.append(b"3")
    assert (tmp_path / "events").read_bytes() == b"head 3"
    assert messages == []


def test_what_is_kept_for_later_does_not_grow_for_ever(tmp_path, messages, monkeypatch):
    monkeypatch.setattr(outlet, "_KEPT", 3)
    file = AppendedFile(tmp_path / "gone" / "lines", tell=messages.append)
    (tmp_path / "gone").write_text("a file where the folder should be")
    for number in range(9):
        file.append(b"%d" % number)
    (tmp_path / "gone").unlink()
    file.append(b"9")
    assert (tmp_path / "gone" / "lines").read_bytes() == b"789"


def test_pieces_of_several_threads_stay_whole(tmp_path, messages):
    file = AppendedFile(tmp_path / "lines", tell=messages.append)
    pieces = [bytes([65 + thread]) * 5000 + b"\n" for thread in range(4)]
    threads = [
        threading.Thread(target=lambda piece=piece: [file.append(piece) for _ in range(20)])
        for piece in pieces
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "lines").read_bytes().splitlines(keepends=True)
    assert sorted(lines) == sorted(pieces * 20)


def test_a_change_that_fails_is_said_and_no_more(tmp_path, messages):
    file = AppendedFile(tmp_path / "lines", tell=messages.append)
    file.rewrite(lambda: Path(tmp_path / "none").read_bytes())
    file.append(b"on it goes")
    assert (tmp_path / "lines").read_bytes() == b"on it goes"
    assert "No such file" in messages[0]
