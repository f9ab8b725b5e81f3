"""The backbone's optimizer and the learning rate at every step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from training.config import OptimConfig

REFERENCE_BATCH = 512  # the global batch that optim.lr is stated for


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then polynomial decay that reaches zero after the last step."""

    peak: float
    warmup_steps: int
    total_steps: int
    power: float

    def __call__(self, step: int) -> float:
        """The rate of step 0 … total_steps − 1. The first warm-up step is small, not full."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        left = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        return self.peak * left**self.power

    def __str__(self) -> str:
        return (
            f"{self.peak:.4g} at its peak, {self.warmup_steps} steps of warm-up, then to the power "
            f"of {self.power:g} down to 0 at step {self.total_steps}"
        )


def create_schedule(
    config: OptimConfig, *, global_batch: int, epochs: int, steps_per_epoch: int
) -> Schedule:
    """The schedule of a run; its peak is config.lr in proportion to the global batch."""
    return Schedule(
        peak=config.lr * global_batch / REFERENCE_BATCH,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        total_steps=epochs * steps_per_epoch,
        power=config.power,
    )


def create_optimizer(
    parameters: Iterable[torch.nn.Parameter], config: OptimConfig, device: torch.device
) -> torch.optim.SGD:
    """torch's fused SGD with a tensor learning rate; skips a step where `found_inf` is 1."""
    optimizer = torch.optim.SGD(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=torch.zeros((), device=device),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )
    # The fused kernel would leave a buffer it allocates in a skipped first step uninitialized.
    for group in optimizer.param_groups:
        for parameter in group["params"] if config.momentum else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> torch.Tensor:
    """Write the rate into the optimizer's tensor, and return that tensor."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)
    return optimizer.param_groups[0]["lr"]
