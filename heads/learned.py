"""What a head learns beside its centers: a few values, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class LearnedStep(NamedTuple):
    """What a step does to the learned values; (k,) each.

    Attributes:
        gradient: d loss / d value.
        start: what a value that is exactly 0 becomes instead, where this is finite.
    """

    gradient: Tensor
    start: Tensor

    @classmethod
    def of_nothing(cls, like: Tensor) -> LearnedStep:
        """Of no values, on the device of `like`."""
        return cls(like.new_empty(0), like.new_empty(0))


def keep_learned(head: nn.Module, start: Sequence[float], *, like: Tensor) -> None:
    """Give a head the buffers `learned`, (k,) and at `start`, and `learned_velocity`.

    They are in its state where k is not 0. like: of their dtype and device.
    """
    values = torch.tensor(start, dtype=like.dtype, device=like.device)
    for name, held in (("learned", values), ("learned_velocity", torch.zeros_like(values))):
        head.register_buffer(name, held, persistent=len(start) > 0)


def descend(
    values: Tensor,
    velocity: Tensor,
    step: LearnedStep,
    *,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    apply: Tensor,
) -> None:
    """Momentum SGD in place, as on the centers; what has not started starts.

    Args:
        values, velocity: (k,) `learned` and `learned_velocity`.
        lr: 0-d.
        apply: 0-d bool; where it is false nothing changes, bit for bit.
    """
    if not len(values):
        return
    starts = (values == 0) & step.start.isfinite()
    moved = momentum * velocity + step.gradient + weight_decay * values
    torch.where(apply, moved, velocity, out=velocity)
    moved = torch.where(starts, step.start, values - lr.to(values.dtype) * velocity)
    torch.where(apply, moved, values, out=values)
