"""Settings ``optim.*``: optimizer, schedule, and what of the backbone stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

from training.config.checks import check, check_ranges
from training.setting_range import Amount, Decay, Positive, Range, Remainder


@dataclass(frozen=True)
class OptimConfig:
    """The backbone's optimizer, and the schedule of its rate."""

    lr: Positive = 0.1  # for a global batch of 512; scaled in proportion to data.global_batch
    momentum: Remainder = 0.9  # of SGD
    weight_decay: Decay = 5e-4  # of the backbone; of the centers unless head.weight_decay is set
    decay_norm_and_bias: bool = True  # False: only weights of convolutions and products decay
    name: Literal["sgd", "adamw"] = "sgd"  # of the backbone; centers have SGD with momentum
    betas: tuple[Remainder, Remainder] = (0.9, 0.999)  # of AdamW: decay of both moving averages
    backend: Literal["torch", "apex"] = "torch"  # whose fused kernels; apex: NVIDIA's, built by you
    schedule: Literal["polynomial", "step", "cosine"] = "polynomial"  # how the rate falls
    warmup_epochs: Amount = 0.0  # over which the rate grows to its peak
    power: Positive = 2.0  # schedule=polynomial
    decay_epochs: tuple[Amount, ...] = ()  # schedule=step: when the rate falls
    decay_factor: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1  # schedule=step
    min_lr: Remainder = 0.0  # schedule=cosine: share of the peak that is left at the end
    clip: Amount = 5.0  # largest norm of the backbone's gradient; 0: any
    freeze: tuple[str, ...] = ()  # parameters of the backbone that stay as they are: [layer1.*]
    rates: dict[str, Positive] = field(default_factory=dict)  # factors on the rate: {layer1.*: 0.1}
    freeze_bn: bool = False  # BatchNorm normalizes by the statistics it starts with, which stay
    freeze_epochs: Amount = 0.0  # the first ones, in which only the centers learn

    def __post_init__(self) -> None:
        check_ranges("optim", self)
        several = isinstance(self.betas, (tuple, list)) and len(self.betas) == 2
        check(several, "optim.betas", self.betas, "two numbers")
        check(
            bool(self.decay_epochs) == (self.schedule == "step"),
            "optim.decay_epochs",
            self.decay_epochs,
            f"some with optim.schedule=step, none otherwise; found optim.schedule={self.schedule}",
        )
        check(
            all(a < b for a, b in pairwise((self.warmup_epochs, *self.decay_epochs))),
            "optim.decay_epochs",
            self.decay_epochs,
            f"each later than the one before and than optim.warmup_epochs={self.warmup_epochs}",
        )
        check(
            self.min_lr == 0 or self.schedule == "cosine",
            "optim.min_lr",
            self.min_lr,
            f"0 unless optim.schedule=cosine; found optim.schedule={self.schedule}",
        )
