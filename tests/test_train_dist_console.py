"""The command with a console that breaks: the run goes on, or is saved when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clock import LIMIT
from tests.test_train_dist_stops import TORCHRUN, newest, started, steps, wait_for_steps
from tests.training import tiny

ROOT = Path(__file__).parents[1]

CONFIG = """
import time
from pathlib import Path
from tests.training import tiny
from training.config import override
from training.loop import Trainer

config = override(tiny.config(Path({data!r}), Path({output!r})), ["run.epochs=4", "log.every=1"])
train_on = Trainer.train_on


def wait(self, *arguments):
    while self.steps_done == {waits_at} and not (self.output / "go on").exists():
        time.sleep(0.01)
    return train_on(self, *arguments)


Trainer.train_on = wait
"""


def configure(tmp_path: Path, *, waits_at: int = -1) -> tuple[Path, Path]:
    """A configuration file, and the run's folder."""
    path, output = tmp_path / "config.py", tmp_path / "run"
    data = tiny.write_set(tmp_path / "data")
    path.write_text(CONFIG.format(data=str(data), output=str(output), waits_at=waits_at))
    return path, output


@pytest.mark.slow(seconds=6)
def test_a_run_outlives_the_head_that_shows_it(tmp_path):
    path, output = configure(tmp_path)
    with subprocess.Popen(
        [sys.executable, "train_dist.py", str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as run:
        head = subprocess.run(["head", "-3"], stdin=run.stdout, capture_output=True, check=True)
        run.stdout.close()
        complaints = run.stderr.read().decode()
        assert run.wait(LIMIT) == 0, complaints
    assert len(head.stdout.splitlines()) == 3
    assert newest(output) == "step_000000020"
    log = (output / "run.log").read_text()
    assert f"checkpoint   {output}/checkpoints/step_000000020" in log
    assert "Traceback" not in complaints
    assert "Exception ignored" not in complaints
    assert complaints.count("stdout: [Errno 32] Broken pipe") == 1


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["one process", "torchrun"])
def test_ctrl_c_that_ends_tee_first_saves_all_the_same(launcher, tmp_path):
    path, output = configure(tmp_path, waits_at=7)
    with started(*launcher, "train_dist.py", path) as process:
        wait_for_steps(output, process, count=7)
        process.stdout.close()
        process.stderr.close()  # as of 2>&1 | tee
        process.send_signal(signal.SIGINT)
        (output / "go on").touch()
        process.wait(LIMIT)
    assert newest(output) == f"step_{steps(output)[-1]:09d}"
    log = (output / "run.log").read_text()
    assert "stopped: SIGINT on rank" in log
    assert "Traceback" not in log
