"""What a run tells may fail wherever it goes; the run trains on and saves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from tests.training import tiny
from training.config import Config, override
from training.distributed import World
from training.loop import Trainer
from training.saving import files
from training.step.precision import choose_precision


@pytest.fixture
def config(data, tmp_path) -> Config:
    changes = ["run.epochs=2", "log.every=1", "run.save_every=2"]
    return override(tiny.config(data, tmp_path / "run"), changes)


def run(config: Config, world: World, *, at: int, disturb: Callable[[], object]) -> Trainer:
    """A whole run, disturbed before a step."""
    precision = choose_precision(world.device, "fp32")
    trainer = Trainer(config, world, precision=precision)
    train_on = trainer.train_on

    def disturbed(*arguments):
        if trainer.steps_done == at:
            disturb()
        return train_on(*arguments)

    trainer.train_on = disturbed
    trainer.run()
    return trainer


def test_a_folder_that_is_removed_midway_costs_what_was_in_it(config, world, tmp_path):
    """Not the run: its checkpoint makes the folder again, and reports come into it."""
    trainer = run(config, world, at=7, disturb=lambda: shutil.rmtree(tmp_path / "run"))
    assert trainer.last_checkpoint.name == "step_000000010"
    assert files.faults(trainer.last_checkpoint) == []
    lines = map(json.loads, trainer.reporter.journal.path.read_text().splitlines())
    assert [line["step"] for line in lines] == [8, 9, 10]
    assert list(trainer.reporter.tensorboard_path.iterdir())
    assert "saving" in (trainer.output / "run.log").read_text()
    assert run(config, world, at=-1, disturb=lambda: None).steps_done == 10, (
        "it is this run's still"
    )


def test_places_that_cannot_be_written_are_said_once_each(config, world, tmp_path, caplog):
    """The folder's own name is taken by a file until the checkpoint is due."""
    away = tmp_path / "away"

    def disturb() -> None:
        (tmp_path / "run").rename(away)
        (tmp_path / "run").write_text("a file where the folder was")

    trainer = None
    with pytest.raises(ValueError, match=r"step 10 is not saved, the newest checkpoint is None"):
        trainer = run(config, world, at=7, disturb=disturb)
    assert trainer is None
    message = [record.getMessage() for record in caplog.records if "goes on" in record.getMessage()]
    for place in ("metrics.jsonl", "tfevents", "state.json"):
        assert len([text for text in message if place in text]) == 1, "for three readings"
    assert "step 10 is not saved" not in (away / "run.log").read_text()


@pytest.mark.slow
def test_run_log_says_what_the_run_is_and_why_it_ended(config, world, tmp_path, capsys):
    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(config, world, at=7, disturb=fail)
    run(config, world, at=-1, disturb=fail)
    lines = [line[21:] for line in (tmp_path / "run" / "run.log").read_text().splitlines()]
    for line in config.lines():
        assert lines.count(line) == 2, "the whole configuration, each time"
    assert lines.count("RuntimeError: a bug") == 1
    assert "saving" in lines[-1]
    shown = [line[21:] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in shown if line in config.lines()] == 2 * config.changes()
    assert set(lines) - set(shown) <= {*config.lines(), "RuntimeError: a bug"}


@pytest.mark.slow
def test_a_run_shorter_than_log_every_shows_its_last_step(config, world, capsys):
    run(override(config, ["log.every=50"]), world, at=-1, disturb=lambda: None)
    message = [line for line in capsys.readouterr().out.splitlines() if "Loss" in line]
    assert len(message) == 1
    assert "Global Step: 10/10 " in message[0]
