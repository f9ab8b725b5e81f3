"""A run built in this process, and taken some steps further."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from training.config import Config
from training.distributed import World
from training.loop import Trainer
from training.reporting.stopwatch import Stopwatch
from training.step.precision import choose_precision

State = TypeVar("State")
SAVED_AT = 6


def build(config: Config, world: World) -> Trainer:
    return Trainer(config, world, precision=choose_precision(world.device, "fp32"))


def advance(trainer: Trainer, world: World, steps: int) -> None:
    stream = trainer.loader.stream(*divmod(trainer.steps_done, trainer.loader.steps_per_epoch))
    stopwatch = Stopwatch(world.device)
    for _ in range(steps):
        trainer.train_on(next(stream), stopwatch.lap)


def save_in_the_middle(
    world: World, config: Config, state: Callable[[Trainer], State]
) -> tuple[State, State]:
    """Its state when it is saved, and two steps later."""
    trainer = build(config, world)
    advance(trainer, world, SAVED_AT)
    trainer.save()
    return _two_steps_on(trainer, world, state)


def go_on(world: World, config: Config, state: Callable[[Trainer], State]) -> tuple[State, State]:
    """The state that is read, and two steps later."""
    trainer = build(config, world)
    assert trainer.steps_done == SAVED_AT
    return _two_steps_on(trainer, world, state)


def _two_steps_on(
    trainer: Trainer, world: World, state: Callable[[Trainer], State]
) -> tuple[State, State]:
    found = state(trainer)
    advance(trainer, world, 2)
    trainer.close()
    return found, state(trainer)
