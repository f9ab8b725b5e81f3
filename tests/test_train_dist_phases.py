"""A signal at any phase of a run ends it well: what was trained is saved, and nothing else waits.

The command runs in processes that are forked from a server with everything imported. A phase is
where a function that a configuration file replaces is called.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import train_dist
from tests.clock import LIMIT
from tests.ranks import FORKSERVER
from tests.training import tiny
from training.faults.stops import NO_ANSWER_EXIT_CODE
from training.faults.watchdog import HANG_EXIT_CODE
from training.reporting.journal import read_lines
from training.saving import files

STEPS = 10

CONFIG = """
import os, signal, time
from pathlib import Path
import training.assembly, training.reporting.curves, training.start, training.verification
import training.saving.checkpoint as checkpoint
from tests.clock import Clock
from tests.training import tiny
from training.config import override
from training.faults import stops, watchdog
from training.loop import Trainer

config = override(
    tiny.config(Path({data!r}), Path({output!r})),
    ["run.epochs=2", "log.every=1", "data.threads=1", "step.precision=fp32"],
)
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
trainers, sent = [], []


def send(*, to_be_heard=True):
    '''A signal to the last rank, once, which goes on when it is known, or never.'''
    if rank == world_size - 1 and not sent:
        sent.append({number})
        os.kill(os.getpid(), {number})
        while not (to_be_heard and trainers[0]._stops._agreement.frozen):
            time.sleep(0.01)


def before(owner, name, act):
    whole = getattr(owner, name)

    def replaced(*arguments, **named):
        act(*arguments)
        return whole(*arguments, **named)

    setattr(owner, name, replaced)


def in_epoch_one(*_):
    if trainers[0].steps_done:
        send()


before(Trainer, "__init__", lambda trainer, *_: trainers.append(trainer))
{phase}
"""

DIES = """
def die(trainer, *_):
    if (rank, trainer.steps_done) == ({rank}, 7):
        while not checkpoint.checkpoints(trainer.output):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
before(Trainer, "train_on", die)
"""
# Before a step is done whoever gets a signal need not come out of what it does.
PHASES = {
    "start": 'before(training.assembly, "create_step", lambda *_: send(to_be_heard=False))',
    "first batch": 'before(Trainer, "_train", lambda *_: send(to_be_heard=False))',
    "step": 'before(Trainer, "train_on", lambda trainer, *_: trainer.steps_done == 2 and send())',
    "death of 0": DIES.format(rank=0),
    "death of 1": DIES.format(rank=1),
    "checkpoint": """
def until_heard(trainer, *_):
    while trainer.steps_done == 5 and not trainer._stops._agreement.frozen:
        time.sleep(0.01)
before(checkpoint.files, "complete", in_epoch_one)
before(Trainer, "train_on", until_heard)
""",
    "verification": """
config = override(config, [f"eval.sets={config.data.train}/pairs.bin"])
before(training.verification, "fold_batch_norm", in_epoch_one)
""",
    "start that takes too long": """
def pass_the_time(*_):
    trainers[0]._stops._max_hours = 1e-9
    while True:
        time.sleep(0.01)
before(training.start.resume, "choose_checkpoint", pass_the_time)
""",
    "impatience": """
def press_twice(*_):
    os.kill(os.getpid(), signal.SIGINT)
    while trainers[0]._stops._interrupted == float("inf"):
        time.sleep(0.01)
    trainers[0]._stops._interrupted -= 60
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        time.sleep(0.01)
before(training.reporting.curves, "plot_curves", press_twice)
""",
    "an hour later": """
def pass_an_hour(trainer, *_):
    if (rank, trainer.steps_done) == (world_size - 1, 2):
        stops.time = Clock()
        stops.time.now = time.monotonic() + 3600
        while not trainer._stops._agreement.frozen:
            time.sleep(0.01)
config = override(config, ["run.max_hours=1"])
before(Trainer, "train_on", pass_an_hour)
""",
    # The limit holds from here on only: any other step may take as long as it likes. The last rank
    # watches once the other has found it out, which does not see it end before.
    "hang": """
def sleep(trainer, *_):
    if trainer.steps_done == 7:
        while rank and not (trainer.output / "hang_rank0.txt").exists():
            time.sleep(0.01)
        trainer._watchdog._minutes = 1 / 60
        time.sleep(3600 * rank)
watchdog._TICK = 0.1
before(Trainer, "train_on", sleep)
""",
    "closing": """
def at_the_end(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    while not trainers[0]._stops._reason:
        time.sleep(0.01)
before(training.reporting.curves, "plot_curves", at_the_end)
""",
}


class Ended(NamedTuple):
    """What became of a run."""

    exit_codes: list[int]  # by rank
    message: str  # by all ranks
    output: Path

    @property
    def state(self) -> dict:
        return json.loads((self.output / "state.json").read_text())

    @property
    def steps(self) -> list[int]:
        """Those whose loss was written down."""
        lines = read_lines(self.output / "metrics.jsonl")
        return [line["step"] for line in lines if "loss" in line]


def _rank(rank: int, world_size: int, port: int, config: Path, log: Path) -> None:
    """A process that does the command."""
    torch.set_num_threads(1)
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)},
        **{"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "localhost"},
        **{"MASTER_PORT": str(port)},
    }
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["train_dist.py", str(config)]
    train_dist.main()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tiny.write_set(tmp_path_factory.mktemp("data"))
    tiny.write_pairs(folder / "pairs.bin")
    return folder


@pytest.fixture
def command(data, tmp_path):
    """Runs the command on some ranks, and sends itself a signal at a phase."""

    def run(phase: str, number: int = signal.SIGTERM, *, world_size: int = 1) -> Ended:
        config, output = tmp_path / "config.py", tmp_path / "run"
        text = CONFIG.format(
            data=str(data), output=str(output), number=int(number), phase=PHASES[phase]
        )
        config.write_text(text)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        logs = [tmp_path / f"rank{rank}" for rank in range(world_size)]
        ranks = [
            FORKSERVER.Process(target=_rank, args=(rank, world_size, port, config, log))
            for rank, log in enumerate(logs)
        ]
        for process in ranks:
            process.start()
        try:
            for process in ranks:
                process.join(LIMIT)
        finally:
            for process in ranks:
                process.kill()
        message = "".join(log.read_text(errors="replace") for log in logs)
        return Ended([process.exitcode for process in ranks], message, output)

    return run


def assert_saved(ended: Ended, *, name: str, code: int = 143) -> None:
    """It has stopped after the last of its steps, which is saved."""
    assert set(ended.exit_codes) == {code}, ended.message
    assert "Traceback" not in ended.message
    assert "gloo" not in ended.message
    path = files.newest(ended.output)
    assert path.name == f"step_{ended.steps[-1]:09d}"
    assert files.faults(path) == []
    rank = len(ended.exit_codes) - 1
    assert f"stopped: {name} on rank {rank}; saved {path}; not finished" in ended.message
    assert ended.state["status"] == "stopped"
    assert (ended.output / "curves.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_at_the_start_nothing_is_waited_for(world_size, command):
    """Not even another rank that is about to compute with this one."""
    ended = command("start", world_size=world_size)
    assert ended.exit_codes == [143] * world_size, ended.message
    rank = world_size - 1
    message = f"stopped: SIGTERM on rank {rank}, before a step was done: nothing was to be saved\n"
    assert ended.message == message
    assert not ended.output.exists()


@pytest.mark.slow
def test_at_the_first_batch_nothing_is_waited_for(command):
    ended = command("first batch")
    assert ended.exit_codes == [143], ended.message
    assert "before a step was done: nothing was to be saved" in ended.message
    assert files.newest(ended.output) is None
    assert ended.state["why"] == "SIGTERM on rank 0, before a step was done"
    assert json.loads((ended.output / "lock.json").read_text())["released"], "free for the next"


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_in_a_step_the_step_is_done_and_saved(world_size, command):
    ended = command("step", world_size=world_size)
    assert_saved(ended, name="SIGTERM")
    assert ended.steps in ([1, 2, 3], [1, 2, 3, 4]), "the other rank may have begun one more"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_every_signal_stops(number, command):
    assert_saved(command("step", number), name=number.name, code=128 + number)


@pytest.mark.slow
def test_while_a_checkpoint_is_written_it_is_finished(command):
    ended = command("checkpoint")
    assert_saved(ended, name="SIGTERM")
    assert "step_000000005" in [path.name for path in files.checkpoints(ended.output)]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_while_a_set_is_verified_the_epoch_is_saved(world_size, command):
    ended = command("verification", world_size=world_size)
    assert_saved(ended, name="SIGTERM")
    assert ended.steps in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_when_a_rank_is_killed_the_other_says_so(dead, command):
    """As by the machine's memory killer: a line instead of a trace, and the checkpoint stays."""
    ended = command(f"death of {dead}", world_size=2)
    alive = 1 - dead
    assert ended.exit_codes[dead] == -signal.SIGKILL
    assert ended.exit_codes[alive] == NO_ANSWER_EXIT_CODE, ended.message
    why = f"rank {dead} is gone: it ended by an error of its own, or was killed"
    assert f"train_dist: {why}. Checkpoints that are complete stay" in ended.message
    assert "Traceback" not in ended.message
    assert files.faults(files.newest(ended.output)) == []
    message = ("failed", why) if alive == 0 else ("running", "")
    assert (ended.state["status"], ended.state["why"]) == message


@pytest.mark.slow
def test_when_the_time_is_over_all_is_saved(command):
    ended = command("an hour later", world_size=2)
    assert ended.exit_codes == [0, 0], ended.message
    assert "stopped: run.max_hours=1 is reached" in ended.message
    assert files.newest(ended.output).name == f"step_{ended.steps[-1]:09d}"


@pytest.mark.slow
def test_a_hang_is_reported_by_the_rank_that_waits(command):
    ended = command("hang", world_size=2)
    assert ended.exit_codes == [HANG_EXIT_CODE] * 2, ended.message
    for rank in range(2):
        message = (ended.output / f"hang_rank{rank}.txt").read_text()
        assert f"rank {rank} hangs: in training of step 7 since" in message
        assert "furthest behind" in message
    assert "in sleep" in (ended.output / "hang_rank1.txt").read_text(), "where it sleeps"
    assert (ended.state["status"], ended.state["exit_code"]) == ("failed", HANG_EXIT_CODE)
    assert ended.state["why"].startswith("rank 0 hangs: in training of step 7 since")


@pytest.mark.slow
def test_at_the_end_what_is_left_is_finished(command):
    ended = command("closing")
    assert ended.exit_codes == [0], ended.message
    assert files.newest(ended.output).name == f"step_{STEPS:09d}"
    assert ended.state["finished"]
    assert (ended.output / "curves.png").exists()


@pytest.mark.slow
def test_at_the_end_a_second_press_quits_and_the_run_is_finished(command):
    ended = command("impatience")
    assert ended.exit_codes == [0], ended.message
    assert "interrupted twice: quitting at once; the run is saved" in ended.message
    assert (ended.state["status"], ended.state["finished"]) == ("finished", True)
    assert not (ended.output / "curves.png").exists()
    assert json.loads((ended.output / "lock.json").read_text())["released"]


@pytest.mark.slow
def test_a_time_limit_shorter_than_the_start_ends_what_starts_the_run_until_it_is_finished(command):
    ended = command("start that takes too long")
    assert ended.exit_codes == [2], ended.message
    assert "before a step was done: nothing was to be saved" in ended.message
    assert (ended.state["status"], ended.state["exit_code"]) == ("stopped", 2)
    assert not ended.state["finished"]
