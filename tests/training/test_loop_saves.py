"""A run whose checkpoints cannot be written says so, tries again, and ends where that fails."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training import tiny
from tests.training.runs import SCORES, build
from training.config import override
from training.faults.agreement import Reason
from training.faults.stops import Stopped
from training.saving import checkpoint, files, room
from training.saving.files import CheckpointError


def test_checkpoints_that_cannot_fit_are_refused_before_the_first_step(
    data, world, tmp_path, monkeypatch
):
    config = tiny.config(data, tmp_path / "run")
    trainer = build(config, world)
    full = SimpleNamespace(f_bavail=5, f_frsize=10**6, f_blocks=9)
    with monkeypatch.context() as patch:
        patch.setattr(room.os, "statvfs", lambda folder: full)
        with pytest.raises(CheckpointError, match=r"3 checkpoints of 3 MB .*room for 1 in all"):
            trainer.run()
    assert trainer.steps_done == 0
    assert not checkpoint.checkpoints(tmp_path / "run")
    build(config, world).close()


@pytest.mark.slow
def test_a_try_that_saved_nothing_does_not_refuse_the_mended_one(data, world, tmp_path):
    """As where the first step ran out of memory; what it has reported is forgotten."""
    output = tmp_path / "run"
    tried = build(override(tiny.config(data, output), ["model.width=0.5"]), world)
    tried.verify()
    tried.close()
    files.folder_of(output, 5).mkdir(parents=True)  # an unfinished save
    config = override(tiny.config(data, output), ["run.resume=never", "run.epochs=1"])
    mended = build(config, world)
    mended.run()
    lines = [json.loads(line) for line in mended.reporter.journal.path.read_text().splitlines()]
    assert [line["step"] for line in lines if "verification" in line] == [0, 5]
    events = EventAccumulator(str(mended.reporter.tensorboard_path)).Reload()
    steps = [event.step for event in events.Scalars("verification_pairs/accuracy")]
    assert steps == [0, 5]
    with pytest.raises(CheckpointError, match=r"holds another run: its model\.width is 0\.25"):
        build(tried.config, world)


@pytest.mark.slow
def test_a_run_that_cannot_save_its_last_step_says_so(data, world, tmp_path, monkeypatch):
    """Once is tried again; twice is an error, not the exit code of a finished run."""
    complete, failures = files.complete, [OSError(28, "No space left on device")]

    def failing(final, **arguments):
        if final.name.endswith("15") and failures:
            raise failures[0]
        complete(final, **arguments)

    monkeypatch.setattr(files, "complete", failing)
    trainer = build(tiny.config(data, tmp_path / "run"), world)
    with pytest.raises(CheckpointError, match=r"step 15 is not saved.*step_000000010: .*No space"):
        trainer.run()
    failures.clear()
    resumed = build(tiny.config(data, tmp_path / "run"), world)
    assert resumed.steps_done == 10
    resumed.run()
    assert resumed.last_checkpoint.name == "step_000000015"


@pytest.mark.slow
def test_one_failed_save_is_a_warning_and_two_in_a_row_end_the_run(
    data, world, tmp_path, monkeypatch, caplog
):
    """The second is noticed at once, not an epoch later, and tried again first."""
    complete, failing = files.complete, {"05": 1, "15": 1, "20": 9}

    def fail(final, **arguments):
        if failing.get(final.name[-2:], 0):
            failing[final.name[-2:]] -= 1
            raise OSError(28, "No space left on device")
        complete(final, **arguments)

    monkeypatch.setattr(files, "complete", fail)
    trainer = build(override(tiny.config(data, tmp_path / "run"), ["run.epochs=6"]), world)
    with pytest.raises(CheckpointError, match=r"step 20 is not saved.*step_000000010: .*No space"):
        trainer.run()
    assert trainer.steps_done == 20
    assert failing["20"] == 6, "three tries"
    message = [r.getMessage() for r in caplog.records if "was not saved" in r.getMessage()]
    assert len(message) == 5


@pytest.mark.slow
def test_a_stop_before_the_first_step_leaves_the_checkpoint_as_it_is(data, world, tmp_path):
    steps = ["optim.schedule=step", "optim.decay_epochs=[2]"]  # more epochs may follow then
    config = override(tiny.config(data, tmp_path / "run"), steps)
    trainer = build(config, world)
    trainer.run()
    path = trainer.last_checkpoint
    before = files.read_about(path)
    assert before["accuracy"] == SCORES["accuracy"]
    resumed = build(override(config, ["run.epochs=4"]), world)
    with pytest.raises(Stopped, match="a test"):
        resumed._stop(Reason("a test", 0))
    resumed.close()
    assert files.read_about(path) == before
