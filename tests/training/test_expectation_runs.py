"""A run with LVFace's penalty by expectations goes on from them, at any number of ranks."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.ranks import run_ranks
from tests.training import tiny
from tests.training.steps import build, go_on, save_in_the_middle
from training.config import ConfigError, override
from training.loop import Trainer

SETTINGS = ("head.num_classes=61", "head.sample_rate=0.5", "head.expectation_margin=0.4")


def test_a_resumed_run_has_the_same_expectations_bit_for_bit(data, world, tmp_path):
    config = override(tiny.config(data, tmp_path / "run"), [*SETTINGS])
    whole = build(config, world)
    whole.run()
    head = whole.step.head
    assert head.expectations.any()
    [last] = (tmp_path / "run" / "checkpoints").glob("step_*15")
    shutil.rmtree(last)
    resumed = build(config, world)
    assert resumed.steps_done == 10
    resumed.run()
    for (name, found), expected in zip(
        resumed.step.head.state_dict().items(), head.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name


@pytest.mark.slow
def test_a_penalty_that_begins_at_an_epoch_is_resumed_in_the_middle_of_it(data, world, tmp_path):
    stages = ["head.sample_rate=0.5", "head.expectation_margin_from={1: 0.4, 2: 0.2}"]
    config = override(
        tiny.config(data, tmp_path / "run"), [*stages, "run.save_steps=3", "run.keep=9"]
    )
    whole = build(config, world)
    head, train_on, seen = whole.step.head, whole.train_on, []

    def watch(*arguments):
        result = train_on(*arguments)
        seen.append((head.expectation_margin, bool(head.expectations.any())))
        return result

    whole.train_on = watch
    whole.run()
    assert seen == [(None, False)] * 5 + [(0.4, True)] * 5 + [(0.2, True)] * 5
    for path in (tmp_path / "run" / "checkpoints").glob("step_*"):
        if not path.name.endswith("08"):
            shutil.rmtree(path)
    resumed = build(config, world)
    assert resumed.steps_done == 8
    resumed.run()
    for (name, found), expected in zip(
        resumed.step.head.state_dict().items(), head.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name


def bank(trainer: Trainer) -> Tensor:
    """Of all ranks."""
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, trainer.step.head.expectations)
    return torch.cat(parts)


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_the_same_expectations(data, tmp_path):
    config = override(tiny.config(data, tmp_path / "run"), [*SETTINGS])
    saved, _ = run_ranks(save_in_the_middle, config, bank, world_size=2, folder=tmp_path)[0]
    assert saved.shape[0] == 61
    assert saved.any()
    for world_size in (1, 3):
        found, then = run_ranks(go_on, config, bank, world_size=world_size, folder=tmp_path)[0]
        assert torch.equal(found, saved)
        assert not torch.equal(then, saved)


@pytest.mark.parametrize(
    "penalty", ["head.expectation_margin=0.4", "head.expectation_margin_from={2: 0.4}"]
)
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("head.place=host", "expected device with head.expectation_margin"),
        ("head.loss=uniface", "expected another loss with head.expectation_margin"),
        ("step.micro_batches=2", "expected 1 with head.expectation_margin"),
        ("head.expectation_margin=inf", "head.expectation_margin"),
        ("head.expectation_margin_from={3: 2}", r"head.expectation_margin_from\[3\]=2"),
    ],
)
def test_what_does_not_go_with_it_is_named(data, tmp_path, penalty, setting, message):
    config = tiny.config(data, tmp_path)
    with pytest.raises(ConfigError, match=message):
        override(config, [penalty, setting])
