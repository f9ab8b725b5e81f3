"""A run killed twenty times at random moments ends as if nothing had happened.

Two ranks on a CPU save after every step. Each life is forked from a server that has everything
imported, so that it begins at once; the last one is torchrun's, with the command itself.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training import tiny
from training.config import Config, override
from training.distributed import join_world, leave_world
from training.loop import Trainer
from training.precision import choose_precision
from training.saving import files as checkpoint_files

ROOT = Path(__file__).parents[3]
RANKS, KILLS, STEPS = 2, 20, 120
TOLD = ("loss", "gradient_norm", "embedding_norm", "lr", "skipped_steps")
CONFIG = """
from pathlib import Path

from tests.training import tiny
from training.config import override

config = override(tiny.config(Path({data!r}), Path({output!r})), {overrides!r})
"""
OVERRIDES = [
    *("run.epochs=24", "run.save_steps=1", "log.every=1", "eval.every=24"),
    *("head.sample_rate=0.5", "model.dropout=0.2", "data.threads=1", "step.precision=fp32"),
]


def _rank(rank: int, config: Config, store: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    world = join_world("cpu", init_method=f"file://{store}")
    precision = choose_precision(world.device, "fp32")
    Trainer(config, world, precision=precision, evaluate=lambda backbone: {}).run()
    leave_world()


def live(config: Config, store: Path, *, kill: Callable[[], None] | None = None) -> None:
    """Run the ranks: to the end, or until `kill` returns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.loop", "torch._inductor", "heads.triton_softmax"])
    ranks = [context.Process(target=_rank, args=(r, config, str(store))) for r in range(RANKS)]
    for process in ranks:
        process.start()
    try:
        if kill:
            kill()
            assert all(process.is_alive() for process in ranks), "it ended before it was killed"
        else:
            for process in ranks:
                process.join(timeout=120)
            assert [process.exitcode for process in ranks] == [0] * RANKS
    finally:
        for process in ranks:  # first all of them: none shall see another go
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in ranks:
            process.join()


def finish_under_torchrun(config: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *("train_dist.py", str(config)),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def losses(output: Path) -> list[list[float]]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [[line["step"], *(line[name] for name in TOLD)] for line in lines if "loss" in line]


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


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_with_the_same_losses_and_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    data = tiny.write_set(tmp_path / "data")
    whole, killed = (
        override(tiny.config(data, tmp_path / name), OVERRIDES) for name in ("whole", "killed")
    )
    live(whole, tmp_path / "store")

    output, draw = tmp_path / "killed", random.Random(0)
    saving = 0
    for life in range(KILLS):
        begun, further = step_of(output), draw.choice((0, 0, 1, 1, 2))

        def wait(begun: int = begun, further: int = further) -> None:
            """A moment in the building of the run, or after so many more checkpoints."""
            deadline = time.monotonic() + 30
            while step_of(output) < begun + further and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.06 if further else 1.2))

        live(killed, tmp_path / f"store{life}", kill=wait)
        everything = (output / "checkpoints").glob("step_*")
        saving += any(not checkpoint_files.is_complete(path) for path in everything)
    assert saving > 0, "none was killed in a save"
    assert step_of(output) < STEPS

    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(data=str(data), output=str(output), overrides=OVERRIDES))
    finish_under_torchrun(file)
    assert losses(output) == losses(tmp_path / "whole")
    assert [step for step, *_ in losses(output)] == list(range(1, STEPS + 1))
    assert shards(output) == shards(tmp_path / "whole")
