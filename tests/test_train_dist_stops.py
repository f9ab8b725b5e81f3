"""The command under real signals: it saves, says how to go on, and outlives ranks that do not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clock import LIMIT, wait_until
from tests.training import tiny
from training.reporting.journal import read_lines

ROOT = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")

# What happens to a run, as a configuration file that changes its trainer. Files hold a `config`.
CONFIG = """
import os, signal, time
from pathlib import Path
from tests.training import tiny
from training.config import override
from training.loop import Trainer
from training.saving.files import folder_of, is_complete

config = override(
    tiny.config(Path({data!r}), Path({output!r})),
    ["run.epochs=20", "run.save_every=2", "log.every=1", {overrides}],
)
train_on = Trainer.train_on


def disturbed(self, *arguments):
    rank, step = self.world.rank, self.steps_done
    is_last = rank == self.world.world_size - 1
    {disturbance}
    return train_on(self, *arguments)


Trainer.train_on = disturbed
"""
# The last rank's eighth step goes on once it knows of a stop; the others wait in a collective.
HEARS = """while is_last and step == 7 and not self._stops._agreement.frozen:
        time.sleep(0.01)"""
# A checkpoint is written beside the steps: it is there before the rank dies.
DIES_ONCE = """if (rank, step, os.environ["TORCHELASTIC_RESTART_COUNT"]) == (1, 17, "0"):
        while not is_complete(folder_of(self.output, 10)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_set(tmp_path_factory.mktemp("data"))


@pytest.fixture
def configure(data, tmp_path):
    """Writes a configuration: its file, and the run's folder."""

    def write(disturbance: str, *overrides: str) -> tuple[Path, Path]:
        output, path = tmp_path / "run", tmp_path / "config.py"
        text = CONFIG.format(
            data=str(data),
            output=str(output),
            disturbance=disturbance,
            overrides=", ".join(repr(override) for override in overrides),
        )
        path.write_text(text)
        return path, output

    return write


@contextmanager
def started(*command: object) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, none of which outlives the test."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(LIMIT)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The ranks that torchrun has started, in order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(int(child) for child in children.read_text().split())


def steps(output: Path) -> list[int]:
    """Those whose loss was written down; a line that is being written is none yet."""
    metrics = output / "metrics.jsonl"
    lines = read_lines(metrics) if metrics.exists() else ()
    return [line["step"] for line in lines if "loss" in line]


def wait_for_steps(output: Path, process: subprocess.Popen[str], *, count: int) -> None:
    def arrived() -> bool:
        assert process.poll() is None, process.communicate()
        return len(steps(output)) >= count

    wait_until(arrived, seen=lambda: steps(output))


def state(output: Path) -> tuple[str, str, int, int]:
    """What state.json says: status, why, step and exit code."""
    state = json.loads((output / "state.json").read_text())
    return state["status"], state["why"], state["step"], state["exit_code"]


def newest(output: Path) -> str:
    return max(path.name for path in (output / "checkpoints").glob("step_*"))


@pytest.mark.slow(seconds=10)
def test_ctrl_c_saves_where_it_is_and_the_command_goes_on(configure):
    """Of one process: the losses are those of a run that was never stopped."""
    path, output = configure(HEARS, "run.epochs=6")
    with started("train_dist.py", path) as process:
        wait_for_steps(output, process, count=7)
        process.send_signal(signal.SIGINT)
        printed, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, complaints
    last = steps(output)[-1]
    assert last in (7, 8), "in the middle"
    assert newest(output) == f"step_{last:09d}"
    assert f"stopped: SIGINT on rank 0; saved {output / 'checkpoints' / newest(output)}" in printed
    assert f"not finished, step {last} of 30" in printed
    assert re.search(rf"go on with: \S*python train_dist\.py {path}\n", printed)
    assert f"curves       {output / 'curves.png'}" in printed
    assert state(output) == ("stopped", "SIGINT on rank 0", last, 130)
    assert (output / "curves.png").exists()
    with started("train_dist.py", path) as process:
        printed, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, complaints
    assert f"resumed from step_{last:09d}" in printed
    assert steps(output) == list(range(1, 31))
    assert state(output) == ("finished", "all steps are done", 30, 0)


@pytest.mark.slow(seconds=10)
def test_what_torchrun_is_sent_stops_all_ranks_after_the_same_step(configure):
    path, output = configure(HEARS)
    with started(*TORCHRUN, "train_dist.py", path) as process:
        wait_for_steps(output, process, count=7)
        process.send_signal(signal.SIGTERM)
        printed, complaints = process.communicate(timeout=LIMIT)
    assert "forcefully exiting" not in complaints
    assert "stopped: SIGTERM on rank" in printed
    launched = r"go on with: \S*torchrun --standalone --nproc_per_node=2 train_dist\.py"
    assert re.search(f"{launched} {path}\n", printed)
    assert "torchrun     shows a trace of its own now; the run is saved" in printed
    assert newest(output) == f"step_{steps(output)[-1]:09d}"


@pytest.mark.slow(seconds=10)
def test_one_rank_that_is_sent_a_signal_stops_all_and_none_is_started_again(configure):
    path, output = configure(HEARS)
    with started(*TORCHRUN, "--max-restarts=3", "train_dist.py", path) as process:
        wait_for_steps(output, process, count=7)
        os.kill(workers(process)[1], signal.SIGTERM)
        printed, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, complaints
    assert printed.count("stopped: SIGTERM on rank 1") == 1
    assert "resumed" not in printed
    assert newest(output) == f"step_{steps(output)[-1]:09d}"


@pytest.mark.slow(seconds=10)
def test_when_torchrun_is_killed_its_ranks_save_and_end(configure):
    """As the machine's memory killer may choose it; a signal to one of them makes no difference."""
    path, output = configure(HEARS)
    with started(*TORCHRUN, "train_dist.py", path) as process:
        wait_for_steps(output, process, count=7)
        orphans = workers(process)
        process.kill()
        os.kill(orphans[1], signal.SIGTERM)
        printed, complaints = process.communicate(timeout=LIMIT)  # the ranks hold its pipes, too
    assert "stopped: " in printed
    assert newest(output) == f"step_{steps(output)[-1]:09d}"
    assert "Traceback" not in complaints
    wait_until(lambda: not any(Path(f"/proc/{orphan}").exists() for orphan in orphans))


@pytest.mark.slow(seconds=10)
def test_a_rank_that_dies_is_started_again_with_all_others(configure):
    path, output = configure(DIES_ONCE, "run.epochs=6")
    with started(*TORCHRUN, "--max-restarts=1", "train_dist.py", path) as process:
        printed, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, complaints
    assert "resumed from step_000000010" in printed
    assert steps(output) == list(range(1, 31)), "nothing comes twice, nothing is missing"
