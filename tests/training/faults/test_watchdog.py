"""A hang ends with the rank, the step and the phase named, and long work is no hang."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.clock import LIMIT
from training.config import ConfigError, RunConfig
from training.distributed import World, join_world, leave_world
from training.faults import watchdog as watchdog_module
from training.faults.watchdog import HANG_EXIT_CODE, Beat, Watchdog, describe_hang

ROOT = Path(__file__).parents[3]

# The limit holds from the seventh step on only: any other may take as long as it likes. Rank 0
# watches once it knows where the other is, and that one once rank 0 has sent it.
TWO_RANKS = """
import sys, time, torch, torch.distributed as dist
from pathlib import Path
from tests.clock import wait_until
from training.config import RunConfig
from training.distributed import join_world
from training.faults import watchdog
watchdog._TICK = 0.1
folder = Path(sys.argv[1])
world = join_world("cpu", init_method=f"file://{folder}/store")
with watchdog.Watchdog(RunConfig(output=str(folder)), world) as dog:
    for step in range(20):
        dog.beat(step, "data")
        if step == 7 and world.rank == 1:
            wait_until((folder / "hang_rank0.txt").exists)
            dog._minutes = 1 / 60
            time.sleep(3600)
        dog.beat(step, "training")
        if step == 7:
            wait_until(lambda: dog._hear().get(1, ())[1:3] == (7, "data"))
            dog._minutes = 1 / 60
        dist.all_reduce(torch.ones(1))
"""


@pytest.mark.slow
def test_a_rank_that_sleeps_is_named_by_the_one_that_waits_for_it(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(tmp_path)],
            cwd=ROOT,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        message = [process.communicate(timeout=LIMIT)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [HANG_EXIT_CODE] * 2
    for rank, phase in enumerate(("training", "data")):
        assert f"rank {rank} hangs: in {phase} of step 7 since" in message[rank]
        assert "furthest behind, so look at their stacks first: ranks [1]" in message[rank]
        assert "rank 0: training of step 7 since" in message[rank]
        assert "rank 1: data of step 7 since" in message[rank]
        written = (tmp_path / f"hang_rank{rank}.txt").read_text()
        assert written in message[rank]
        assert "most recent call first" in written, "the stacks"
    assert "all_reduce" in (tmp_path / "hang_rank0.txt").read_text()


@pytest.fixture
def world():
    yield join_world("cpu")
    leave_world()


@pytest.fixture
def ended(monkeypatch) -> list[dict[int, Beat]]:
    """What was known when a hang would have ended this process."""
    ended = []
    monkeypatch.setattr(Watchdog, "_end", lambda self, beats: ended.append(beats))
    return ended


def watch(watchdog: Watchdog, events: Iterator[None]) -> None:
    """Let it look once, without a clock, wherever `events` yields; the limit is 120 looks."""
    watchdog._leaving = SimpleNamespace(wait=lambda seconds: next(events, True))
    watchdog._watch()


def looks(count: int) -> Iterator[None]:
    return itertools.repeat(None, count)


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return RunConfig(output=str(tmp_path), hang_minutes=10)


def test_steps_and_long_work_are_no_hang(config, world, ended):
    watchdog = Watchdog(config, world)

    def train() -> Iterator[None]:
        for step in range(3):
            watchdog.beat(step, "training")
            yield from looks(120)
        with watchdog.paused("verification"):
            yield from looks(1000)
        yield from looks(120)
        assert not ended
        yield
        assert [beats[0].phase for beats in ended] == ["what follows verification"]

    watch(watchdog, train())


def test_another_ranks_long_work_is_waited_for(config, world, ended):
    watchdog = Watchdog(config, replace(world, world_size=2))

    def train() -> Iterator[None]:
        watchdog._store.set("1", json.dumps(Beat(7, 3, "saving", 0.0, paused=True)))
        watchdog.beat(4, "training")
        yield from looks(1000)
        assert not ended
        watchdog._store.set("1", json.dumps(Beat(8, 4, "data", 0.0, paused=False)))
        yield from looks(121)
        assert ended

    watch(watchdog, train())


@pytest.fixture
def exits(monkeypatch) -> list[int]:
    """The codes that this process would have ended with."""
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    return exits


def end(config: RunConfig, world: World) -> Path:
    """A hang's last words; where they were to be written down."""
    watchdog = Watchdog(config, world)
    watchdog._tick = 0.0
    watchdog.beat(7, "training")
    watchdog._end(watchdog._hear())
    return watchdog._path


MESSAGE = "rank 0 hangs: in training of step 7 since"


def test_a_hang_is_reported_on_stderr_and_in_a_file(config, world, exits, capfd):
    path = end(config, world)
    assert exits == [HANG_EXIT_CODE]
    assert MESSAGE in path.read_text()
    assert "thread MainThread (most recent call first)" in path.read_text()
    assert f'File "{__file__}", line ' in path.read_text()
    assert path.read_text() in capfd.readouterr().err


def test_a_folder_that_is_gone_keeps_nobody_from_ending(config, world, exits, capfd):
    path = end(replace(config, output=f"{config.output}/gone"), world)
    assert exits == [HANG_EXIT_CODE]
    message = capfd.readouterr().err
    assert MESSAGE in message
    assert f"{path} was not written: [Errno 2]" in message


def test_nor_does_a_full_disk(config, world, exits, capfd):
    (Path(config.output) / "hang_rank0.txt").symlink_to("/dev/full")
    end(config, world)
    assert exits == [HANG_EXIT_CODE]
    assert MESSAGE in capfd.readouterr().err


@pytest.mark.slow
def test_nor_does_a_disk_that_hangs(config, world, exits, capfd, monkeypatch):
    """A pipe that nobody reads: opening it waits for good."""
    monkeypatch.setattr(watchdog_module, "_PATIENCE", 2.0)
    pipe = Path(config.output) / "hang_rank0.txt"
    os.mkfifo(pipe)
    end(config, world)
    assert exits == [HANG_EXIT_CODE]
    assert MESSAGE in capfd.readouterr().err
    assert MESSAGE in pipe.read_text(), "and lets its thread go"


def test_nor_does_a_closed_stderr(config, world, exits, monkeypatch):
    def closed(*_: object) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "write", closed)
    assert MESSAGE in end(config, world).read_text()
    assert exits == [HANG_EXIT_CODE]


def test_nor_does_a_report_that_cannot_be_made(config, world, exits, monkeypatch):
    monkeypatch.setattr(watchdog_module, "describe_stacks", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        end(config, world)
    assert exits == [HANG_EXIT_CODE]


def test_a_store_that_is_frozen_does_not_freeze_the_watch(config, world, ended, monkeypatch):
    """As where the machine of the rank that holds it is stopped."""
    monkeypatch.setattr(watchdog_module, "_PATIENCE", 0.1)
    thawed = threading.Event()
    watchdog = Watchdog(replace(config, hang_minutes=0.02), world)
    watchdog._store = SimpleNamespace(set=lambda *_: thawed.wait(), check=lambda _: thawed.wait())

    def train() -> Iterator[None]:
        watchdog.beat(7, "training")
        yield from looks(12)
        assert ended

    watch(watchdog, train())
    thawed.set()


def test_a_rank_of_which_nothing_was_heard_is_listed():
    beats = {1: Beat(9, 4, "training", 3723.0, False), 2: Beat(7, 4, "data", 3725.0, False)}
    report = describe_hang(beats, rank=1, world_size=3, minutes=10)
    assert "rank 1 hangs: in training of step 4 since 01:02:03 UTC" in report
    assert "ranks [2]" in report
    assert "  rank 0: nothing\n" in report


def test_no_watch_and_no_time_below_zero(world):
    with Watchdog(RunConfig(hang_minutes=0), world) as watchdog:
        assert not watchdog._thread.is_alive()
    with pytest.raises(ConfigError, match=r"run\.hang_minutes=-1"):
        RunConfig(hang_minutes=-1)
