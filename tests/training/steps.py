"""A run built in this process, and taken some steps further."""

from __future__ import annotations

from training.config import Config
from training.distributed import World
from training.loop import Trainer
from training.reporting.stopwatch import Stopwatch
from training.step.precision import choose_precision


def build(config: Config, world: World) -> Trainer:
    return Trainer(config, world, precision=choose_precision(world.device, "fp32"))


def advance(trainer: Trainer, world: World, steps: int) -> None:
    stream = trainer.loader.stream(*divmod(trainer.steps_done, trainer.loader.steps_per_epoch))
    stopwatch = Stopwatch(world.device)
    for _ in range(steps):
        trainer.train_on(next(stream), stopwatch.lap)
