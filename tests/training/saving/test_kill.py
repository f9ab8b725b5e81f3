"""A run killed twenty times at random moments ends as if nothing had happened.

Two ranks on a CPU save after every step, with their centers in another place in each life. A moment
is the call of so many functions, in all threads of one rank, which stops there until both are
killed: no clock, so a slow machine dies where a fast one does. Each life is forked from a server
that has everything imported, so that it begins at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest
import torch
import torch.distributed.checkpoint as dcp

from heads.rows.placement import PLACES
from tests.clock import LIMIT, wait_until
from tests.ranks import FORKSERVER
from tests.training import tiny
from training.config import Config, override
from training.distributed import join_world, leave_world
from training.loop import Trainer
from training.saving import files as checkpoint_files
from training.step.precision import choose_precision

ROOT = Path(__file__).parents[3]
RANKS, KILLS, STEPS = 2, 20, 25
WRITTEN = ("loss", "gradient_norm", "embedding_norm", "lr", "skipped_steps")
OVERRIDES = [
    *("run.epochs=5", "run.save_steps=1", "log.every=1", "eval.every=5"),
    *("head.sample_rate=0.5", "model.dropout=0.2", "data.threads=1", "step.precision=fp32"),
]


# Whose calls count: what builds, trains and saves.
COUNTED = (str(ROOT / "training"), str(Path(dcp.__file__).parent))
BUILDING, A_STEP = 12_000, 23_000  # calls, about


class Moment(NamedTuple):
    rank: int
    calls: int


def stop_after(calls: int, reached: Path) -> None:
    """From here on so many calls are made; the next one says so and does not return."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if event == "call" and frame.f_code.co_filename.startswith(COUNTED):
            count += 1
            if count == calls:
                reached.touch()
                threading.Event().wait()

    threading.setprofile(note)
    sys.setprofile(note)


def _rank(rank: int, config: Config, store: Path, moment: Moment | None) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    world = join_world("cpu", init_method=f"file://{store}")
    precision = choose_precision(world.device, "fp32")
    if moment and moment.rank == rank:
        stop_after(moment.calls, store.with_suffix(".reached"))
    Trainer(config, world, precision=precision).run()
    leave_world()


def live(config: Config, store: Path, moment: Moment | None = None) -> None:
    """Run the ranks: to the end, or to a moment, at which both are killed."""
    ranks = [
        FORKSERVER.Process(target=_rank, args=(rank, config, store, moment))
        for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    try:
        if moment:
            reached = store.with_suffix(".reached")
            wait_until(lambda: reached.exists() or not all(p.is_alive() for p in ranks))
            assert all(process.is_alive() for process in ranks), "it ended before it was killed"
        else:
            for process in ranks:
                process.join(timeout=LIMIT)
            assert [process.exitcode for process in ranks] == [0] * RANKS
    finally:
        for process in ranks:  # first all of them: none may see another end
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in ranks:
            process.join()


def losses(output: Path) -> list[list[float]]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [[line["step"], *(line[name] for name in WRITTEN)] for line in lines if "loss" in line]


def shards(output: Path) -> dict[str, dict]:
    """What the last checkpoint's tensors are, by digest: weights, centers, momentum, counters."""
    path = checkpoint_files.newest(output)
    assert path.name == f"step_{STEPS:09d}"
    assert checkpoint_files.faults(path) == []
    files = json.loads((path / "manifest.json").read_text())["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".distcp")}


def step_of(output: Path) -> int:
    path = checkpoint_files.newest(output)
    return int(path.name.removeprefix("step_")) if path else 0


@pytest.mark.slow(seconds=25)
def test_killed_at_twenty_moments_it_ends_with_the_same_losses_and_weights(tmp_path):
    data = tiny.write_set(tmp_path / "data")
    whole, killed = (
        override(tiny.config(data, tmp_path / name), OVERRIDES) for name in ("whole", "killed")
    )
    live(whole, tmp_path / "store")

    output, draw = tmp_path / "killed", random.Random(0)
    saving = 0
    for life in range(KILLS):
        calls = draw.randrange(draw.choice((BUILDING, BUILDING + A_STEP, BUILDING + 3 * A_STEP)))
        config = override(killed, [f"head.place={PLACES[life % len(PLACES)]}"])
        live(config, tmp_path / f"store{life}", Moment(draw.randrange(RANKS), calls))
        everything = (output / "checkpoints").glob("step_*")
        saving += any(not checkpoint_files.is_complete(path) for path in everything)
    assert saving > 0, "none was killed in a save"
    assert 0 < step_of(output) < STEPS

    live(killed, tmp_path / "last")
    assert losses(output) == losses(tmp_path / "whole")
    assert [step for step, *_ in losses(output)] == list(range(1, STEPS + 1))
    assert shards(output) == shards(tmp_path / "whole")
