"""A hang ends with the rank, the step and the phase named, and long work is no hang."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.clock import LIMIT
from training.config import ConfigError, RunConfig
from training.distributed import join_world, leave_world
from training.faults.watchdog import HANG_EXIT_CODE, Beat, Watchdog, describe_hang

ROOT = Path(__file__).parents[3]

# The limit holds from the seventh step on only: any other may take as long as it likes. Rank 0
# watches once it knows where the other is, and that one once rank 0 has told of it.
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
        told = [process.communicate(timeout=LIMIT)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [HANG_EXIT_CODE] * 2
    for rank, phase in enumerate(("training", "data")):
        assert f"rank {rank} hangs: in {phase} of step 7 since" in told[rank]
        assert "furthest behind, so look at their stacks first: ranks [1]" in told[rank]
        assert "rank 0: training of step 7 since" in told[rank]
        assert "rank 1: data of step 7 since" in told[rank]
        written = (tmp_path / f"hang_rank{rank}.txt").read_text()
        assert written in told[rank]
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
