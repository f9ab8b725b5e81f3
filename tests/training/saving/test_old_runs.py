"""Runs that older versions saved go on: the archive beside this file holds one, and its data.

It is of revision 9d7b361, after five of fifteen steps. To keep it small its images have one color
each, and its backbone's weights and momentum were made constant before it was saved.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from heads import GroupClasses
from tests.training import tiny
from training.config import Config, override
from training.loop import Trainer
from training.saving.files import CheckpointError
from training.step.precision import choose_precision

ARCHIVE = Path(__file__).with_name("run_of_9d7b361.tar.xz")
# What it was trained with, by the names of now.
GROUPS = ["head.sample_groups=5", "head.random_groups=1", "head.groups_scope=sample"]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tiny.config(tmp_path / "data", tmp_path / "run")


def start(config: Config, world) -> Trainer:
    precision = choose_precision(world.device, "fp32")
    return Trainer(config, world, precision=precision)


@pytest.mark.slow
def test_a_run_with_settings_of_other_names_goes_on(config, world):
    trainer = start(override(config, GROUPS), world)
    assert trainer.steps_done == 5
    assert trainer.step.head.steps == 5
    assert trainer.step.head.sampling == GroupClasses(5, random_groups=1, scope="sample")
    assert trainer.step.head.velocity.any()
    trainer.run()
    assert trainer.steps_done == 15
    assert trainer.step.head.nonfinite_steps == 0


def test_what_differs_is_named_as_it_is_called_now(config, world):
    with pytest.raises(CheckpointError, match=r"head\.sample_groups was 5, is 4"):
        start(override(config, ["head.sample_groups=4", *GROUPS[1:]]), world)
