"""A hang ends with the rank, the step and the phase named, and long work is no hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from training.config import ConfigError, RunConfig
from training.distributed import join_world, leave_world
from training.faults.watchdog import HANG_EXIT_CODE, Beat, Watchdog, describe_hang

ROOT = Path(__file__).parents[3]

TWO_RANKS = """
import sys, time, torch, torch.distributed as dist
from training.config import RunConfig
from training.distributed import join_world
from training.faults.watchdog import Watchdog
world = join_world("cpu", init_method="file://" + sys.argv[1] + "/store")
with Watchdog(RunConfig(output=sys.argv[1], hang_minutes=1 / 60), world) as watchdog:
    for step in range(20):
        watchdog.beat(step, "data")
        if step == 7 and world.rank == 1:
            time.sleep(60)
        watchdog.beat(step, "training")
        dist.all_reduce(torch.ones(1))
        time.sleep(0.02)
"""


def test_a_rank_that_sleeps_is_named_by_the_one_that_waits_for_it(tmp_path):
    started = time.monotonic()
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
        told = [process.communicate(timeout=45)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert time.monotonic() - started < 30, "not the minute that the other one sleeps"
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


def test_steps_and_long_work_are_no_hang(world, tmp_path):
    """The limit is a third of a second; nothing may end this process."""
    config = RunConfig(output=str(tmp_path), hang_minutes=0.3 / 60)
    with Watchdog(config, world) as watchdog:
        for step in range(8):
            watchdog.beat(step, "training")
            time.sleep(0.1)
        with watchdog.paused("verification"):
            time.sleep(0.8)
        watchdog.beat(8, "training")
        time.sleep(0.1)
    time.sleep(0.5)
    assert not list(tmp_path.iterdir())


def test_another_ranks_long_work_is_waited_for(world, tmp_path):
    config = RunConfig(output=str(tmp_path), hang_minutes=0.3 / 60)
    with Watchdog(config, replace(world, world_size=2)) as watchdog:
        watchdog._store.set("1", json.dumps(Beat(7, 3, "saving", time.time(), paused=True)))
        watchdog.beat(4, "training")
        time.sleep(0.8)
    assert not list(tmp_path.iterdir())


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
