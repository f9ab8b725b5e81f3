"""state.json says how far a run is and why it ended, to scripts and to the next start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline import whole_file
from tests.bad_disk import break_disk
from tests.training import tiny
from training.config import Config, override
from training.loop import Trainer
from training.saving import run_state
from training.saving.files import CheckpointError, checkpoints
from training.saving.run_state import RunState, describe_silent_end
from training.step.precision import choose_precision


def build(config: Config, world) -> Trainer:
    precision = choose_precision(world.device, "fp32")
    return Trainer(config, world, precision=precision)


def read(output: Path) -> dict:
    return json.loads((output / "state.json").read_text())


def create(output: Path, *, total_steps: int = 15) -> RunState:
    return RunState(
        output,
        steps_per_epoch=5,
        total_steps=total_steps,
        memory_predicted=10**9,
        memory_available=2 * 10**9,
    )


@pytest.mark.slow
def test_it_follows_a_run_to_its_end(data, world, tmp_path, monkeypatch):
    trainer = build(tiny.config(data, tmp_path), world)
    assert read(tmp_path) | {"status": "running", "step": 0, "checkpoint": None} == read(tmp_path)
    seen, saved = [], RunState.saved
    monkeypatch.setattr(RunState, "saved", lambda *a: saved(*a) or seen.append(read(tmp_path)))
    trainer._saver.on_saved = trainer._held.state.saved
    trainer.run()
    assert [(state["status"], state["step"], state["epoch"]) for state in seen] == [
        ("running", 5, 1.0),
        ("running", 10, 2.0),
        ("running", 15, 3.0),
    ]
    last = str(tmp_path / "checkpoints" / "step_000000015")
    expected = {
        "status": "finished",
        "finished": True,
        "step": 15,
        "total_steps": 15,
        "epoch": 3.0,
        "exit_code": 0,
        "checkpoint": last,
        "host": os.uname().nodename,
        "pid": os.getpid(),
    }
    assert read(tmp_path) | expected == read(tmp_path)
    assert read(tmp_path)["memory_predicted_mb"] == round(trainer.prediction.total / 1e6)


def test_an_error_is_written_down(data, world, tmp_path, monkeypatch):
    trainer = build(override(tiny.config(data, tmp_path), ["run.save_steps=1"]), world)
    train_on = trainer.train_on

    def fail(*arguments):
        if trainer.steps_done == 3:
            raise OverflowError("a bug of ours")
        return train_on(*arguments)

    monkeypatch.setattr(trainer, "train_on", fail)
    with pytest.raises(OverflowError):
        trainer.run()
    state = read(tmp_path)
    assert (state["status"], state["why"]) == ("failed", "OverflowError: a bug of ours")
    assert (state["step"], state["exit_code"], state["finished"]) == (3, 1, False)


def test_the_first_end_counts(tmp_path):
    """A thread ends the process for a second Ctrl-C, while the main thread is elsewhere."""
    state = create(tmp_path)
    state.begin(0, None)
    state.end("finished", why="all steps are done", exit_code=0, step=15)
    state.end("failed", why="interrupted twice", exit_code=130)
    assert (read(tmp_path)["status"], read(tmp_path)["exit_code"]) == ("finished", 0)
    state = create(tmp_path / "other")
    (tmp_path / "other").mkdir()
    state.end("stopped", why="SIGTERM", exit_code=143)
    state.begin(0, None)
    assert read(tmp_path / "other")["status"] == "stopped"


@pytest.mark.slow
def test_a_finished_run_that_is_started_again_stays_finished_whatever_ends_it(
    data, world, tmp_path
):
    config = tiny.config(data, tmp_path)
    build(config, world).run()
    again = build(config, world)
    assert read(tmp_path)["finished"]
    again._stops.on_quit("stopped", why="SIGTERM on rank 0", exit_code=143)
    assert (read(tmp_path)["status"], read(tmp_path)["step"]) == ("finished", 15)
    with pytest.raises(CheckpointError, match="other settings"):
        build(override(config, ["optim.lr=0.3"]), world)
    assert read(tmp_path)["finished"], "the folder is what it was"


def test_more_epochs_make_a_finished_run_an_unfinished_one(tmp_path):
    state = create(tmp_path)
    state.begin(15, tmp_path / "step_000000015")
    state.end("finished", why="all steps are done", exit_code=0)
    longer = create(tmp_path, total_steps=20)
    longer.end("stopped", why="SIGTERM, before a step was done", exit_code=143)
    expected = {"status": "stopped", "finished": False, "step": 15, "total_steps": 20}
    assert read(tmp_path) | expected == read(tmp_path)
    assert read(tmp_path)["checkpoint"].endswith("step_000000015")


@pytest.mark.slow
def test_a_finished_run_whose_checkpoints_are_damaged_is_not_finished(data, world, tmp_path):
    config = tiny.config(data, tmp_path)
    build(config, world).run()
    for path in checkpoints(tmp_path):
        (path / "about.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        build(config, world)
    state = read(tmp_path)
    assert (state["status"], state["finished"], state["checkpoint"]) == ("failed", False, None)
    assert "no checkpoint is whole" in state["why"]


def test_what_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    """Said once; it is there when the folder is back."""
    output = tmp_path / "run"
    state = create(output)
    state.begin(0, None)
    state.saved(output / "checkpoints" / "step_000000005")
    assert caplog.text.count("state.json") == 1
    output.mkdir()
    state.saved(output / "checkpoints" / "step_000000010")
    assert read(output)["step"] == 10


def test_it_is_never_there_by_half(tmp_path, monkeypatch):
    state = create(tmp_path)
    state.begin(0, None)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_file, "sync", fail)
    state.end("finished", why="", exit_code=0)
    assert read(tmp_path)["status"] == "running"
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.slow
def test_a_run_that_was_killed_is_described_by_the_next(data, world, tmp_path, capsys):
    """Nothing is said of one that had the time to say so itself."""
    config = tiny.config(data, tmp_path)
    create(tmp_path / "elsewhere")
    build(config, world).close()
    assert "before" not in capsys.readouterr().out
    build(config, world).run()
    message = capsys.readouterr().out
    assert "before     the run ended without a word after the checkpoint of step 0" in message
    build(config, world).close()
    assert "before" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kills_then", "kills_now", "message"),
    [
        (4, 6, "the machine's memory killer has ended 2 processes since it began"),
        (4, 4, "it was killed, perhaps by the machine's memory killer (see dmesg)"),
        (4, 0, "it was killed, perhaps"),
        (None, 3, "it was killed, perhaps"),
    ],
)
def test_the_memory_killer_is_named_where_it_is_known(
    kills_then, kills_now, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_state, "count_kills", lambda: kills_then)
    create(tmp_path).begin(5, None)
    before = create(tmp_path).before
    monkeypatch.setattr(run_state, "count_kills", lambda: kills_now)
    line = describe_silent_end(before)
    assert message in line
    assert line.startswith("ended without a word after the checkpoint of step 5")
    assert line.endswith("predicted to take 1000 MB of 2000 MB available")


def test_garbage_is_no_state(tmp_path):
    (tmp_path / "state.json").write_text("[1")
    assert create(tmp_path).before == {}
    assert describe_silent_end({}) is None


def test_it_is_written_where_no_file_can_be_renamed(tmp_path, monkeypatch):
    break_disk(monkeypatch, "norename")
    state = create(tmp_path)
    for step in (3, 4):
        state.begin(step, None)
        assert read(tmp_path)["step"] == step
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
