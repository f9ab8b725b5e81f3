"""What a head learns beside its centers: a few values, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
    gradient: Tensor,
    *,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    apply: Tensor,
) -> None:
    """Momentum SGD as that of the centers, in place.

    Args:
        values, velocity, gradient: (k,) of one dtype; k may be 0.
        lr: 0-d.
        apply: 0-d bool; where it is false nothing changes, bit for bit.
    """
    moved = momentum * velocity + gradient + weight_decay * values
    torch.where(apply, moved, velocity, out=velocity)
    torch.where(apply, values - lr.to(values.dtype) * velocity, values, out=values)
