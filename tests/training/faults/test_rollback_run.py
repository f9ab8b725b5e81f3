"""A run whose steps stop being finite goes back with smaller steps, and at last says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training import tiny
from training.config import override
from training.distributed import World
from training.faults.rollback import DivergedError
from training.loop import Trainer
from training.step.precision import choose_precision


def build(
    data: Path, output: Path, world: World, poisoned: Callable[[Trainer], bool], *more: str
) -> Trainer:
    """Fifteen steps, saved after 5, 10 and 15; a poisoned step has labels of no class."""
    config = override(tiny.config(data, output), ["run.max_nonfinite=3", "log.every=1", *more])
    trainer = Trainer(
        config,
        world,
        precision=choose_precision(world.device, "fp32"),
    )
    train_on = trainer.train_on

    def train(batch, lap):
        if poisoned(trainer):
            batch = batch._replace(labels=torch.full_like(batch.labels, tiny.IDENTITIES))
        return train_on(batch, lap)

    trainer.train_on = train
    return trainer


def readings(output: Path) -> list[dict[str, float]]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [reading for reading in map(json.loads, lines) if "loss" in reading]


@pytest.mark.slow
def test_it_goes_back_before_the_skipped_steps_with_half_the_rate(data, world, tmp_path, capsys):
    """Steps 9, 10 … are poisoned: the checkpoint of 10 already holds the weights of 9."""

    def poisoned(trainer: Trainer) -> bool:
        return trainer.steps_done >= 9 and trainer.rollback.times == 0

    trainer = build(data, tmp_path / "run", world, poisoned)
    trainer.run()
    assert (trainer.steps_done, trainer.rollback.times) == (15, 1)
    message = readings(tmp_path / "run")
    assert [reading["step"] for reading in message] == list(range(1, 16)), "once each"
    for reading in message:
        share = 1 if reading["step"] <= 5 else 0.5
        assert reading["lr"] == pytest.approx(share * trainer.schedule(reading["step"] - 1))
        assert reading["skipped_steps"] == 0
    out = capsys.readouterr().out
    assert "3 steps in a row were not finite and changed nothing" in out
    assert "back to step 5, learning rate × 0.5" in out


@pytest.mark.slow
def test_fewer_than_the_limit_are_only_skipped(data, world, tmp_path):
    trainer = build(data, tmp_path / "run", world, lambda trainer: trainer.steps_done in (6, 7))
    trainer.run()
    assert trainer.rollback.times == 0
    in_a_row = [reading["skipped_in_a_row"] for reading in readings(tmp_path / "run")]
    assert in_a_row == [0] * 6 + [1, 2] + [0] * 7


@pytest.mark.slow
def test_where_going_back_does_not_help_it_stops_with_a_diagnosis(data, world, tmp_path):
    trainer = build(data, tmp_path / "run", world, lambda trainer: trainer.steps_done >= 7)
    with pytest.raises(DivergedError) as stopped:
        trainer.run()
    text = str(stopped.value)
    assert "step 10: 3 steps in a row were not finite" in text
    assert "after going back 2 times" in text
    assert "embeddings are finite, the head's loss is not" in text
    assert "rank 0 read" in text
    assert "train.rec: the image of the record at offset" in text


def test_before_the_first_checkpoint_there_is_nothing_to_go_back_to(data, world, tmp_path):
    trainer = build(data, tmp_path / "run", world, lambda trainer: True)
    with pytest.raises(DivergedError, match=r"step 3: 3 steps .* after going back 0 times"):
        trainer.run()


@pytest.mark.slow
def test_checkpoints_that_were_saved_among_skipped_steps_do_not_push_out_the_last_good_one(
    data, world, tmp_path
):
    """Saved at every second step, two kept: the steps of 10 and 12 hold the weights of 9."""

    def poisoned(trainer: Trainer) -> bool:
        return trainer.steps_done >= 9 and trainer.rollback.times == 0

    trainer = build(data, tmp_path / "run", world, poisoned, "run.save_steps=1")
    trainer.run()
    assert (trainer.steps_done, trainer.rollback.times) == (15, 1)
    assert trainer.last_checkpoint.name == "step_000000015"
