"""Settings ``step.*``: precision, micro-batches, graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.config.checks import check_ranges
from training.setting_range import Count


@dataclass(frozen=True)
class StepConfig:
    """How a step is computed."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: 16 bits where they are fast
    micro_batches: Count = 1  # parts that a rank's batch is computed in: less memory, same gradient
    cuda_graph: Literal["off", "head", "full"] = "head"  # what is recorded and replayed on GPUs
    compress_gradients: bool = True  # on GPUs, average gradients in the step's 16 bits

    def __post_init__(self) -> None:
        check_ranges("step", self)
