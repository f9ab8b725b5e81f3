"""run.deterministic: two runs of twenty steps have the same losses, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.ranks import run_ranks
from tests.training import tiny
from training.config import Config, override
from training.distributed import World
from training.loop import Trainer
from training.step.precision import choose_precision

OVERRIDES = [
    "run.deterministic=true",
    "run.epochs=4",
    "log.every=1",
    "model.dropout=0.3",
    "head.loss=elastic_arcface",
    "head.loss_args={scale: 16.0}",
    "head.sample_rate=0.5",
    "data.augment=[flip,light]",
    "data.threads=2",
]


def train(world: World, config: Config) -> list[str]:
    """The losses of every step as they were written down, by the main rank."""
    trainer = Trainer(
        config,
        world,
        precision=choose_precision(world.device, "bf16"),
    )
    assert torch.are_deterministic_algorithms_enabled()
    trainer.run()
    if trainer.reporter is None:
        return []
    lines = trainer.reporter.journal.path.read_text().splitlines()
    return [line[line.index('"loss"') :].split(",")[0] for line in lines if '"loss"' in line]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_two_runs_have_the_same_losses(world_size, tmp_path: Path):
    data = tiny.write_set(tmp_path / "data")
    runs = [
        run_ranks(
            train,
            override(tiny.config(data, tmp_path / name), OVERRIDES),
            world_size=world_size,
            folder=tmp_path,
        )[0]
        for name in ("one", "other")
    ]
    assert len(runs[0]) == 20
    assert len(set(runs[0])) > 15, "losses that differ from step to step"
    assert runs[0] == runs[1]
