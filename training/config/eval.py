"""Settings ``eval.*``: the sets, and when they are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from training.config.checks import check_ranges
from training.setting_range import Count, CountOrZero, Range


@dataclass(frozen=True)
class EvalConfig:
    """What is scored during training, and when."""

    sets: tuple[str, ...] = ()  # lfw.bin, lfw.bin+blur, xqlfw:DIR, …: see docs/training.md
    every: Count | dict[str, Count] = 1  # epochs; {ijbc: 5}: of some sets, 1 of the others
    every_steps: CountOrZero = 0  # of sets without an epoch of their own; 0: none
    batch_size: Annotated[int, Range(1, 1 << 20)] = 128  # images a rank

    def __post_init__(self) -> None:
        check_ranges("eval", self)
