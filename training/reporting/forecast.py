"""How long a run will take: said once, from a few of its first steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from training.config import Config
from training.scored_sets import ScoredSet

WARM_UP = 5  # first steps, which choose algorithms, allocate, and find batches waiting
TIMED = 8  # steps after them
_RECORDED = 12  # steps until step.cuda_graph=full replays what it has recorded


def warm_up_steps(config: Config) -> int:
    """How many first steps take longer than the others."""
    return _RECORDED if config.step.cuda_graph == "full" else WARM_UP


class Forecast:
    """Times the first steps that are warm, and the scoring of each set that comes before them.

    Args:
        config: the run.
        sets: that it is scored on.
        steps_per_epoch: of its loader.
        device: computes the steps; it is waited for where the clock is read.
        clock: tells seconds.
    """

    def __init__(
        self,
        config: Config,
        *,
        sets: Sequence[ScoredSet],
        steps_per_epoch: int,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config, self._sets, self._steps_per_epoch = config, sets, steps_per_epoch
        self._device, self._clock = device, clock
        self._warm_up = warm_up_steps(config)
        self._counted = 0  # steps
        self._began = 0.0  # when steps were warm
        self._scoring: dict[str, float] = {}  # seconds, by set

    @contextmanager
    def scoring(self, name: str) -> Iterator[None]:
        """Around the scoring of a set: what it takes is no part of the steps."""
        began = self._now()
        yield
        self._scoring[name] = self._now() - began
        self._began += self._scoring[name]

    def step(self, done: int) -> str | None:
        """Count a step, the `done`th of the run; returns the line to say, once."""
        self._counted += 1
        if self._counted == self._warm_up:
            self._began = self._now()
        if self._counted != self._warm_up + TIMED:
            return None
        return self._line(done, (self._now() - self._began) / TIMED)

    def _line(self, done: int, seconds_per_step: float) -> str:
        config = self._config
        steps = config.run.epochs * self._steps_per_epoch - done
        seconds, aside = steps * seconds_per_step, "checkpoints"
        left = {one.name: self._times_left(one, done) for one in self._sets}
        verification = ""
        if not left.keys() <= self._scoring.keys():  # a resumed run begins without
            aside = "verification and checkpoints"
        elif left:
            each = sum(self._scoring[name] for name in left)
            whole = sum(times * self._scoring[name] for name, times in left.items())
            seconds += whole
            verification = f" and {duration(whole)} of verification"
            if len(set(left.values())) == 1:
                times = max(left.values())
                which = f"{times} verifications" if times > 1 else "a verification"
                verification = f" and {which} of {duration(each)}"
        speed = config.data.global_batch / seconds_per_step
        return (
            f"about {duration(seconds)} for {steps:,} steps at {speed:,.0f} images/s"
            f"{verification}, {aside} aside"
        )

    def _times_left(self, one: ScoredSet, done: int) -> int:
        """How often a set is scored after the `done`th step."""
        epochs, per_epoch = self._config.run.epochs, self._steps_per_epoch
        end = epochs * per_epoch + 1
        paces = (per_epoch, one.every_steps)
        steps = {step for pace in paces if pace for step in range(pace, end, pace)}
        return sum(
            one.due(step, steps_per_epoch=per_epoch, epochs=epochs) for step in steps if step > done
        )

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.get_device_module(self._device).synchronize()
        return self._clock()


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 3 min, 5.2 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
