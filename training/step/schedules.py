"""The learning rate at every step: warm-up, then one of three ways down."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.config import OptimConfig

REFERENCE_BATCH = 512  # the global batch that optim.lr is stated for


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the peak, then down as `config.schedule` says.

    A pure function of the step, so a resumed run has the rates of one that never stopped.

    - polynomial: share left of the decay to `config.power`, reaching zero after the last step.
    - step: times `config.decay_factor` at each of `decay_steps`.
    - cosine: half a period, reaching the share `config.min_lr` of the peak after the last step
      (SGDR without restarts, Loshchilov and Hutter, 2017, arXiv:1608.03983).
    """

    config: OptimConfig
    global_batch: int
    warmup_steps: int
    total_steps: int
    decay_steps: tuple[int, ...]

    @property
    def peak(self) -> float:
        """The highest rate: the configured one in proportion to the global batch."""
        return self.config.lr * self.global_batch / REFERENCE_BATCH

    def __call__(self, step: int) -> float:
        """The rate of step 0 … total_steps − 1. The first warm-up step is small, not full."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        return self.peak * self._share(step)

    def _share(self, step: int) -> float:
        """Of the peak, once warm-up is over."""
        left = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        if self.config.schedule == "polynomial":
            return left**self.config.power
        if self.config.schedule == "cosine":
            floor = self.config.min_lr
            return floor + (1 - floor) * (1 - math.cos(math.pi * left)) / 2
        return self.config.decay_factor ** sum(step >= start for start in self.decay_steps)

    def __str__(self) -> str:
        peak = f"{self.config.lr:.4g} for a batch of {REFERENCE_BATCH}"
        if self.global_batch != REFERENCE_BATCH:
            peak += f", so {self.peak:.4g} for {self.global_batch}"
        warmup = f"{self.warmup_steps or 'no'} steps of warm-up"
        if self.config.schedule == "polynomial":
            decay = f"to the power of {self.config.power:g} down to 0"
        elif self.config.schedule == "cosine":
            decay = f"along a cosine down to {self.peak * self.config.min_lr:.4g}"
        else:
            steps = " and at ".join(str(step) for step in self.decay_steps)
            decay = f"times {self.config.decay_factor:g} at step {steps}, ending"
        return f"{peak}; {warmup}, then {decay} at step {self.total_steps}"


def create_schedule(
    config: OptimConfig, *, global_batch: int, epochs: int, steps_per_epoch: int
) -> Schedule:
    """The schedule of a run, its epochs turned into steps."""
    return Schedule(
        config,
        global_batch=global_batch,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        total_steps=epochs * steps_per_epoch,
        decay_steps=tuple(round(epoch * steps_per_epoch) for epoch in config.decay_epochs),
    )
