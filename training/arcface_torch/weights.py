"""A training state as arcface_torch has it, whoever saved it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from facestream import UserError
from models import Architecture


class ArcFaceTorchError(UserError):
    """Files that cannot be taken over: says what was found, what was expected, how to mend it."""


@dataclass(frozen=True)
class Optimization:
    """What the optimizer of a run and its schedule say of themselves.

    Steps are those of the schedule, which with gradient accumulation are not the optimizer's.
    """

    rate: float  # the highest
    momentum: float
    weight_decay: float
    head_weight_decay: float
    power: float | None = None  # of the way down; None, as the next two: not known
    warmup_steps: int | None = None
    total_steps: int | None = None


@dataclass
class Weights:
    """A training state, whoever's format it was in; tensors are on the CPU."""

    architecture: Architecture
    backbone: dict[str, Tensor]  # state dict
    momentum: dict[str, Tensor] | None = None  # of its trained parameters; None: not known
    centers: Tensor | None = None  # (C, D)
    velocity: Tensor | None = None  # (C, D); None: not known
    step: int = 0
    epoch: int = 0
    ranks: int = 0  # whose rows the centers were read from
    optimization: Optimization | None = None  # None: not known, or not SGD's
    notes: list[str] = field(default_factory=list)  # what was left out or changed, and why


def rows_of(num_classes: int, *, rank: int, world_size: int) -> int:
    """How many of C rows arcface_torch gives a rank."""
    return num_classes // world_size + (rank < num_classes % world_size)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have momentum, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}
