"""Settings ``model.*``: the backbone and its low-rank updates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from training.config.checks import check, check_ranges
from training.setting_range import CountOrZero, Positive, Range, Remainder


@dataclass(frozen=True)
class ModelConfig:
    """The backbone; its names are those of models.MODELS, which check what they are built from."""

    name: str = "iresnet50"  # as `python -m models` lists them, or timm/NAME
    embedding_dim: Annotated[int, Range(1, 16_384)] = 512  # D, features of an embedding
    width: Annotated[float, Range(0.25, 16)] = 1.0  # factor on all channels, a multiple of 0.25
    dropout: Remainder = 0.0  # probability, before the last layer
    options: dict[str, Any] = field(default_factory=dict)  # what else this network takes
    sync_bn: bool = False  # BatchNorm statistics over all ranks; GPUs only, which wait at each
    compile: bool = False  # fuse what stands between the convolutions; a minute at the start
    checkpointing: bool = False  # less memory for a third more work: blocks run again in backward
    fused: bool = False  # BatchNorm and what follows in one kernel; some networks, NVIDIA GPUs
    # Memory is predicted without compile and winograd: the compiler decides which maps, and which
    # of the tiles that Winograd's products are made of, get memory of their own.
    winograd: bool = False  # with compile, on CPUs: 3x3 convolutions by fewer products, less exact
    lora_rank: CountOrZero = 0  # of low-rank updates, which alone learn of the backbone; 0: none
    lora_alpha: Positive = 16.0  # their products count lora_alpha / lora_rank times
    lora_layers: tuple[str, ...] = ("*",)  # by names: those layers, and no others, have updates

    def __post_init__(self) -> None:
        check_ranges("model", self)
        # Ranks that fail to compile would leave the others waiting for their statistics.
        check(not (self.compile and self.sync_bn), "model.compile", True, "false with sync_bn")
        check(not (self.fused and self.sync_bn), "model.fused", True, "false with model.sync_bn")
        # Which fuses as much by itself.
        check(not (self.fused and self.compile), "model.fused", True, "false with model.compile")
        alone = self.winograd and not self.compile
        check(not alone, "model.winograd", True, "false without model.compile, which makes it fast")
        both = self.compile and self.checkpointing
        # Compilers take no BatchNorm whose statistics change in one run of a block and not in two.
        check(not both, "model.checkpointing", True, "false with model.compile")

    @property
    def lora_scale(self) -> float:
        """What the products of low-rank updates are multiplied by; 0 without them."""
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0
