"""A run on cards that need not be here: what fits, what travels, and how quick it may be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from facestream import UserError
from heads.centers import shard_of
from heads.cost import HeadCost, predict_cost
from heads.rows.stored import DTYPES
from models.batch_norm import fuse_batch_norm
from models.checkpointing import checkpoint_blocks
from models.traffic import StepCounts, count_step
from training.config import Config, ConfigError, HeadConfig, check_batch
from training.distributed import World
from training.planning.cards import Fleet
from training.planning.memory import Prediction, largest_sampling, predict, predict_head, with_head
from training.planning.speed import Seconds, Work, step_seconds
from training.step.learning import create_network, freeze
from training.step.precision import Precision, choose_precision

# Centers and momentum, from what is usual to what takes least.
KEPT: dict[str, dict[str, Any]] = {
    "float32, float32": {},
    "bfloat16, bfloat16": {"centers_dtype": "bfloat16", "momentum_dtype": "bfloat16"},
    "bfloat16, none": {"centers_dtype": "bfloat16", "momentum": 0.0},
    "float8, none": {"centers_dtype": "float8_e4m3", "momentum": 0.0},
}
PLACES: tuple[Literal["device", "host", "disk"], ...] = ("device", "host", "disk")
SAMPLINGS: dict[str, dict[str, Any]] = {
    "all": {"sample_rate": 1.0},
    "rate 0.1": {"sample_rate": 0.1},
    "100,000": {"sample_count": 100_000},
}
# What these change, as it is without them.
_PLAIN: dict[str, Any] = {
    "sample_rate": 1.0,
    "sample_rate_from": {},
    "sample_count": 0,
    "centers_dtype": "float32",
    "momentum_dtype": "float32",
    "momentum": None,
}
_TRITON = (8, 0)  # the compute capability from which the head's kernels run
_LARGEST_BATCH = 1 << 14  # images a GPU that are looked for


class Choice(NamedTuple):
    """One way to keep and to sample centers.

    Attributes:
        sampling, kept: keys of SAMPLINGS and KEPT.
        memory: of a rank.
        host, disk: bytes of a machine, all its ranks together.
        seconds: of a step; None where a disk decides.
    """

    sampling: str
    kept: str
    place: str
    memory: Prediction
    host: int
    disk: int
    fits: bool
    seconds: Seconds | None


@dataclass(frozen=True)
class RunPlan:
    """What is asked: a configuration whose global batch is that of all ranks.

    Raises UserError for what cannot be planned, or would be refused by a run.
    """

    config: Config
    fleet: Fleet
    num_classes: int

    def __post_init__(self) -> None:
        check_batch(self.config, self.fleet.count)
        if self.precision.compute_dtype == torch.float32:
            raise UserError(
                "step.precision=fp32: expected auto, bf16 or fp16, since cards are counted at "
                "their peaks in 16 bits"
            )

    @cached_property
    def precision(self) -> Precision:
        return choose_precision(
            self.world.device,
            self.config.step.precision,
            capability=self.fleet.card.capability,
        )

    @cached_property
    def world(self) -> World:
        """The first rank's, which has most centers."""
        return World(
            rank=0,
            world_size=self.fleet.count,
            local_rank=0,
            local_world_size=self.fleet.in_machine,
            device=torch.device("cuda"),
        )

    @cached_property
    def memory(self) -> Prediction:
        """Of a rank, as the run would print it."""
        return predict(self.config, self.world, self.precision, num_classes=self.num_classes)

    def fits(self, memory: Prediction) -> bool:
        """Into the card of a rank, and into the memory of its machine."""
        host = self.fleet.in_machine * memory.host
        return memory.total <= self.fleet.card.room and host <= self.fleet.host_room

    @cached_property
    def _network(self) -> nn.Module:
        """As it trains, on the meta device."""
        model = self.config.model
        with torch.device("meta"):
            network = create_network(self.config).train()
        freeze(network, self.config)
        if model.fused:
            fuse_batch_norm(network)
        if model.checkpointing:
            checkpoint_blocks(network, self.config.architecture.family.stages)
        return network

    @cached_property
    def backbone(self) -> StepCounts:
        """Of the backbone, for each image."""
        return count_step(self._network, self.config.data.image_size)

    @property
    def parameters(self) -> int:
        """Those of the backbone that learn."""
        return sum(p.numel() for p in self._network.parameters() if p.requires_grad)

    def head_cost(self, head: HeadConfig) -> HeadCost:
        """Of a step: of all its micro-batches together."""
        config, parts = replace(self.config, head=head), self.config.step.micro_batches
        cost = predict_cost(
            shard_of(self.num_classes, rank=0, world_size=self.fleet.count),
            config.model.embedding_dim,
            largest_sampling(config, self.num_classes),
            global_batch=config.data.global_batch // parts,
            world_size=self.fleet.count,
            triton=self.fleet.card.capability >= _TRITON and head.backend != "torch",
            centers_dtype=DTYPES[head.centers_dtype],
            momentum_dtype=DTYPES[head.momentum_dtype],
            momentum=config.centers_momentum > 0,
        )
        return HeadCost(*(parts * value for value in cost))

    def work(self, head: HeadConfig) -> Work:
        """Of a step of one rank."""
        config = replace(self.config, head=head)
        images, parts = config.data.global_batch // self.fleet.count, config.step.micro_batches
        width = self.precision.compute_dtype.itemsize if config.step.compress_gradients else 4
        rows = 0
        if head.place != "device":
            rows = predict_head(
                config, self.world, self.precision, num_classes=self.num_classes
            ).rows
        return Work(
            flops=images * self.backbone.flops,
            bytes=images * self.backbone.bytes.total(),
            launches=parts * self.backbone.calls,
            updated=self.parameters,
            averaged=width * self.parameters,
            head=self.head_cost(head),
            fetched=rows,
        )

    def seconds(self, head: HeadConfig) -> Seconds:
        """What a step counts."""
        return step_seconds(self.work(head), self.fleet)

    def images_per_s(self, seconds: Seconds) -> float:
        """Of all ranks together, counted."""
        return self.config.data.global_batch / seconds.total

    def choice(self, sampling: str, kept: str, place: Literal["device", "host", "disk"]) -> Choice:
        """What is asked with another head. Raises ConfigError for one that a run would refuse."""
        chosen = SAMPLINGS[sampling] | KEPT[kept] | {"place": place}
        head = replace(self.config.head, **(_PLAIN | chosen))
        config = replace(self.config, head=head)
        memory = with_head(
            self.memory, config, self.world, self.precision, num_classes=self.num_classes
        )
        host, disk = (self.fleet.in_machine * size for size in (memory.host, memory.disk))
        seconds = None if place == "disk" else self.seconds(head)
        return Choice(sampling, kept, place, memory, host, disk, self.fits(memory), seconds)

    def choices(self) -> Iterator[Choice]:
        """Those that a run takes, from what is usual to what takes least."""
        for sampling, place, kept in itertools.product(SAMPLINGS, PLACES, KEPT):
            if SAMPLINGS[sampling].get("sample_count", 0) >= self.num_classes:
                continue
            with suppress(ConfigError):  # such as hard negatives of centers that are elsewhere
                yield self.choice(sampling, kept, place)

    def largest_batch(self) -> int:
        """Images a GPU that fit with all else as asked, in eights; 0: none do."""
        each = 8 * self.config.step.micro_batches
        most = _LARGEST_BATCH // each

        def fits(times: int) -> bool:
            data = replace(self.config.data, global_batch=times * each * self.fleet.count)
            asked = replace(self, config=replace(self.config, data=data))
            return self.fits(asked.memory)

        low, high = 0, 1
        while high <= most and fits(high):
            low, high = high, 2 * high
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return each * low
