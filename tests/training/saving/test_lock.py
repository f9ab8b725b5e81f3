"""One process at a time in a run's folder, on one host and between hosts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clock import LIMIT, wait_until
from tests.training import tiny
from tests.training.saving.test_checkpoint import CONFIG, train_step
from training.loop import Trainer
from training.saving import digests, files
from training.saving import lock as locks
from training.saving.files import CheckpointError
from training.saving.lock import Lock
from training.saving.saver import Saver
from training.step.precision import choose_precision


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture(autouse=True)
def no_settling(monkeypatch):
    monkeypatch.setattr(locks, "_SETTLE", 0)


@pytest.fixture(autouse=True)
def no_heart_beats_on(monkeypatch):
    """A test's lock that went on would end the process that the next tests run in."""
    begun: list[Lock] = []
    acquire = Lock.acquire
    monkeypatch.setattr(Lock, "acquire", lambda lock: begun.append(lock) or acquire(lock))
    yield
    for lock in begun:
        lock._leaving.set()
        if lock._thread.is_alive():
            lock._thread.join(LIMIT)


@pytest.fixture
def ended(monkeypatch) -> list[str]:
    """Why this process would have ended; the thread that finds it ends instead."""
    reasons: list[str] = []

    def end(why: str) -> None:
        reasons.append(why)
        raise Ended

    monkeypatch.setattr(locks, "_end", end)
    return reasons


@pytest.fixture
def other() -> Iterator[subprocess.Popen]:
    """Another process of this host."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def held_by(folder: Path, pid: int, **changes: object) -> dict:
    """Write the lock that a process of this host would have written."""
    holder = locks._this_process.__wrapped__(pid) | changes
    (folder / locks.FILE).write_text(json.dumps(holder))
    return holder


def hold(folder: Path) -> Lock:
    lock = Lock(folder)
    lock.acquire()
    return lock


def holder_of(folder: Path) -> dict:
    return json.loads((folder / locks.FILE).read_text())


def is_ours(folder: Path) -> bool:
    return holder_of(folder)["pid"] == os.getpid() and not holder_of(folder).get("released")


def watch(monkeypatch, happens: Callable[[int], None]) -> list[float]:
    """Nobody waits: `happens` gets the number of each sleep, whose seconds are listed."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        happens(len(slept))

    monkeypatch.setattr(locks.time, "sleep", sleep)
    return slept


def test_a_folder_is_held_then_released_then_held_by_whoever_comes(tmp_path, caplog):
    lock = hold(tmp_path)
    assert is_ours(tmp_path)
    lock.release()
    assert holder_of(tmp_path)["released"]
    held_by(tmp_path, 1, token="of another", released=True)
    hold(tmp_path).release()
    assert caplog.text == "", "nothing was taken over"
    assert [file.name for file in tmp_path.iterdir()] == [locks.FILE]


def test_a_second_run_of_the_same_process_is_the_same_holder(tmp_path):
    first = hold(tmp_path)
    second = hold(tmp_path)
    first.release()
    second.release()


def test_a_process_that_lives_is_not_disturbed_even_suspended(tmp_path, other, caplog):
    before = held_by(tmp_path, other.pid)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        other.send_signal(number)
        complaint = rf"is in use by process {other.pid} on {socket.gethostname()} since 2.* UTC: st"
        for attempt in (hold, locks.require_free):
            with pytest.raises(CheckpointError, match=complaint):
                attempt(tmp_path)
    assert holder_of(tmp_path) == before


def test_of_a_dead_process_a_folder_is_taken_over_with_a_line(tmp_path, other, caplog):
    held_by(tmp_path, other.pid)
    other.kill()
    wait_until(lambda: locks._started(other.pid) == "")  # not yet waited for: a zombie is dead
    locks.require_free(tmp_path)
    hold(tmp_path).release()
    assert f"was held by process {other.pid} on" in caplog.text
    assert "lives no more: taken over" in caplog.text


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path, other, caplog):
    held_by(tmp_path, other.pid, started="1")
    hold(tmp_path).release()
    assert "taken over" in caplog.text


def test_another_hosts_folder_is_taken_over_after_three_missed_heartbeats(
    tmp_path, monkeypatch, caplog
):
    """Whatever the other host's clock says: the file is from the future here."""
    held_by(tmp_path, 1, host="far", host_id="far 1", token="far")
    os.utime(tmp_path / locks.FILE, (2**33, 2**33))
    locks.require_free(tmp_path)  # that is for `acquire` to find out
    slept = watch(monkeypatch, lambda number: None)
    hold(tmp_path).release()
    assert sum(slept) == pytest.approx(90)
    assert "may be in use by process 1 on far since" in caplog.records[0].getMessage()
    assert "taken over" in caplog.records[1].getMessage()


def test_another_hosts_folder_is_refused_at_its_first_heartbeat(tmp_path, monkeypatch):
    before = held_by(tmp_path, 1, host="far", host_id="far 1", token="far")
    file = tmp_path / locks.FILE
    slept = watch(monkeypatch, lambda number: number == 29 and os.utime(file, (1, number)))
    with pytest.raises(CheckpointError, match="is in use by process 1 on far"):
        hold(tmp_path)
    assert len(slept) == 29
    assert holder_of(tmp_path) == before


def test_a_folder_that_another_host_lets_go_meanwhile_is_free(tmp_path, monkeypatch, caplog):
    held_by(tmp_path, 1, host="far", host_id="far 1", token="far")

    def let_go(number: int) -> None:
        if number == 1:
            held_by(tmp_path, 1, host="far", host_id="far 1", token="far", released=True)

    watch(monkeypatch, let_go)
    hold(tmp_path).release()
    assert "taken over" not in caplog.text


def test_a_lock_that_was_written_by_half_holds_nobody_up(tmp_path, monkeypatch):
    """Its process was killed; one that is still writing it is seen a moment later."""
    file = tmp_path / locks.FILE
    file.write_text('{"tok')
    slept = watch(monkeypatch, lambda number: None)
    hold(tmp_path).release()
    assert sum(slept) < 90
    file.write_text('{"tok')
    watch(monkeypatch, lambda number: held_by(tmp_path, os.getppid()))
    with pytest.raises(CheckpointError, match=f"in use by process {os.getppid()} on"):
        hold(tmp_path)


@pytest.mark.parametrize(
    ("key", "odd"),
    [
        *[("pid", None), ("pid", "1"), ("pid", 10**30), ("pid", -1), ("started", 5)],
        *[("host", 1), ("since", None), ("token", None), ("host_id", [])],
    ],
)
def test_a_lock_that_names_no_process_holds_nobody_up(tmp_path, monkeypatch, key, odd):
    """Somebody has edited it, or another program has a file of this name."""
    watch(monkeypatch, lambda number: None)
    whole = held_by(tmp_path, os.getppid())
    lacking = {name: value for name, value in whole.items() if name != key}
    for holder in (whole | {key: odd}, lacking):
        (tmp_path / locks.FILE).write_text(json.dumps(holder))
        locks.require_free(tmp_path)
        hold(tmp_path).release()
        assert holder_of(tmp_path)["released"]


@pytest.mark.parametrize("content", ["[1]", "7", '"text"', "\udcff"])
def test_a_lock_that_is_something_else_holds_nobody_up(tmp_path, monkeypatch, content):
    watch(monkeypatch, lambda number: None)
    (tmp_path / locks.FILE).write_text(content, errors="surrogateescape")
    hold(tmp_path).release()


def test_what_is_written_aside_does_not_stay(tmp_path, monkeypatch):
    """Neither where the disk is full, nor of a process that was killed meanwhile."""
    (tmp_path / "lock.7.unfinished").write_text("{")
    lock = hold(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space")))
        lock.release()
    assert [file.name for file in tmp_path.iterdir()] == [locks.FILE]
    lock.release()
    assert holder_of(tmp_path)["released"]


def test_of_two_that_take_a_folder_at_once_one_is_refused(tmp_path, monkeypatch):
    held_by(tmp_path, 1, token="gone", started="1", released=True)
    watch(monkeypatch, lambda number: held_by(tmp_path, 2, token="faster"))
    with pytest.raises(CheckpointError, match="is in use by process 2"):
        hold(tmp_path)
    assert holder_of(tmp_path)["token"] == "faster"


def test_a_heartbeat_is_seen_by_those_who_watch(tmp_path, monkeypatch):
    """Also where the file was removed, and with a lock that was written by half."""
    monkeypatch.setattr(locks, "_BEAT", 0.01)
    file = tmp_path / locks.FILE
    lock = hold(tmp_path)
    for _ in range(3):
        seen = locks._stamp(file)
        wait_until(lambda seen=seen: locks._stamp(file) != seen)
    file.unlink()
    wait_until(file.exists)
    lock.release()
    lock._thread.join(LIMIT)
    assert not lock._thread.is_alive()


def test_a_disk_that_is_lost_ends_no_heartbeat(tmp_path, monkeypatch, ended):
    folder = tmp_path / "run"
    folder.mkdir()
    lock = hold(folder)
    files.shutil.rmtree(folder)
    lock.beat()
    folder.write_text("a file now")
    lock.beat()
    lock.release()
    assert not ended


def test_a_suspended_run_that_another_took_over_ends_at_its_next_heartbeat(
    tmp_path, monkeypatch, ended
):
    lock = hold(tmp_path)
    for released in (False, True):  # the other may have ended, too
        holder = held_by(tmp_path, 4, host="far", token="far", released=released)
        with pytest.raises(Ended):
            lock.beat()
        assert "was taken over by process 4 on far since" in ended.pop()
        lock.release()
        assert holder_of(tmp_path) == holder


def test_it_replaces_none_of_the_others_checkpoints(world, tmp_path, ended):
    """Neither when it begins to save, nor when it was suspended in the middle."""
    saver = Saver(tmp_path, config=CONFIG, train_step=train_step(), facts={}, lock=hold(tmp_path))
    saver.save(1)
    path = saver.wait()
    held_by(tmp_path, 4, token="far")
    before = files.read_about(path)
    saver.save(1)
    with pytest.raises(Ended):
        saver.wait()
    assert files.read_about(path) == before
    assert files.faults(path) == []


def test_it_completes_no_checkpoint_that_it_was_writing(world, tmp_path, monkeypatch, ended):
    saver = Saver(tmp_path, config=CONFIG, train_step=train_step(), facts={}, lock=hold(tmp_path))
    digest = digests.DigestedFile.digest
    monkeypatch.setattr(
        digests.DigestedFile,
        "digest",
        lambda file: held_by(tmp_path, 4, token="t") and digest(file),
    )
    saver.save(1)
    with pytest.raises(Ended):
        saver.wait()
    assert files.checkpoints(tmp_path) == []


def test_a_run_that_lost_its_folder_writes_no_metrics_and_no_state(data, world, tmp_path, ended):
    """The other has begun its own files; what this run would write goes nowhere."""
    output = tmp_path / "run"
    trainer = Trainer(
        tiny.config(data, output),
        world,
        precision=choose_precision(world.device, "fp32"),
    )
    held_by(output, 4, token="far")
    others = (output / "state.json").read_text()
    with pytest.raises(Ended):
        trainer.run()
    with pytest.raises(Ended):
        trainer._held.part("stopped", why="SIGTERM on rank 0", exit_code=143)
    assert (output / "metrics.jsonl").read_text() == ""
    assert (output / "state.json").read_text() == others
    assert files.checkpoints(output) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_is_that_of_the_whole_process_with_the_reason(tmp_path, monkeypatch, capsys):
    """Whatever its main thread does: the heartbeat is another's."""
    codes = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit  # which ends a thread without a word

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(locks, "_BEAT", 0.01)
    lock = hold(tmp_path)
    held_by(tmp_path, 4, token="far")
    lock._thread.join(LIMIT)
    assert codes == [2]
    assert "was taken over by process 4" in capsys.readouterr().err
    lock.release()
