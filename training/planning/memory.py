"""How much memory a run takes on each rank, by part, known before anything is allocated."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from heads import GroupClasses, create_extra_terms
from heads.centers import shard_of
from heads.memory import HeadMemory, predict_memory
from heads.rows.stored import DTYPES
from heads.sampling import Sampling, sampling_at
from models.batch_norm import fuse_batch_norm
from models.checkpointing import checkpoint_blocks
from pipeline.augment import Augmentation
from pipeline.dali_decode import PREFETCH
from pipeline.dali_loader import choose_threads
from training.config import Config, DataConfig, OptimConfig
from training.distributed import World
from training.planning.alive import (
    Blocks,
    blocks_of_inference,
    blocks_of_training,
    blocks_run_again,
)
from training.planning.machine import own_memory
from training.planning.row_places import RowPlaces, place_rows
from training.saving.files import CheckpointError, split_choice
from training.saving.reading import open_weights
from training.saving.weight_file import WeightsError
from training.step.learning import create_network, freeze, rate_factors
from training.step.precision import Precision

# Bytes that a run's libraries take on a CPU after the prediction, whatever is trained: code that
# they load or compile, threads, and what malloc keeps without use. Measured, see
# benchmarks/memory_prediction.py.
_LOADED_LATER = 60_000_000
LOADED_BEYOND_STEPS = 60_000_000  # the same, of what a dry run's steps alone do not load
_TO_VERIFY = 130_000_000  # the same, of what only verification uses: it draws its curves
_TO_JUDGE = 32  # for each number of a test set's embeddings; 24 to 31 measured, of 6,000 pairs
_TO_AUGMENT = 50_000_000  # of DALI
# One part in so many of the small blocks of a network that runs again comes on top: its gradients
# come between what is freed and made again all the time, and glibc's malloc is left with pieces
# that fit nothing. Measured, of IResNets, MobileFaceNet and ViTs: between nothing and all of them.
_IN_PIECES = 2


@dataclass(frozen=True)
class Prediction:
    """Bytes on the device of one rank, of that with the most centers.

    Of an accelerator, what torch's allocator holds without use is left out, and so are the
    private pools of CUDA graphs. On a CPU all of the process is counted.
    """

    libraries: int  # on a CPU: what the process takes by now, and what they will load later
    backbone: int  # weights, gradients, the optimizer's state, BatchNorm's statistics
    # Kept for backward, of one micro-batch; of blocks that run again what there is at most.
    activations: int
    centers: int  # and the expectations beside them, with head.expectation_margin
    momentum: int  # of the centers
    neighbors: int  # the tables of hard negatives, and the centers one is built from
    transients: int  # of the head's step
    loader: int  # batches made ahead, in memory that torch does not see on an accelerator
    teacher: int  # weights, and what its forward takes beyond the activations
    checkpoint: int  # on a CPU: the copy of the state that is written while training goes on
    verification: int  # folded backbone, a batch beyond the activations, on a CPU its embeddings
    fetched: int = 0  # rows of single steps, with head.place=host or disk
    # Not of the device: with head.place=host or disk, what a rank takes of the host's memory beside
    # an accelerator, and of the disk.
    host: int = 0
    disk: int = 0

    @property
    def total(self) -> int:
        """All parts of the device together."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        elsewhere = ("host", "disk") if self.fetched else ("fetched", "host", "disk")
        return {name: size for name, size in asdict(self).items() if name not in elsewhere}

    def __str__(self) -> str:
        """In 10^6 bytes, for the log; parts that round to none are left out."""
        rounded = {name: f"{size / 1e6:,.0f}" for name, size in self.parts.items()}
        parts = ", ".join(f"{name} {size}" for name, size in rounded.items() if size != "0")
        places = {"of the host's memory": self.host, "of the disk": self.disk}
        besides = [f"; {size / 1e6:,.0f} MB {where}" for where, size in places.items() if size]
        return f"{self.total / 1e6:,.0f} MB a rank: {parts}{''.join(besides)}"


def predict(
    config: Config,
    world: World,
    precision: Precision,
    *,
    num_classes: int,
    scored_images: int = 0,
) -> Prediction:
    """What a run takes; nothing is allocated to find out.

    Compiling the backbone (model.compile) and the head's Triton kernels make it less; what compiled
    Winograd products (model.winograd) take for a moment is not known.

    Args:
        config: one that training.config.check_batch accepts.
        world: its ranks share the centers, those of a machine its cores.
        num_classes: of the data.
        scored_images: of the largest test set.

    Raises:
        UserError: for a model or an augmentation that cannot be built.
    """
    micro_batches = config.step.micro_batches
    batch = config.data.global_batch // world.world_size
    with torch.device("meta"):
        backbone = create_network(config)
    freeze(backbone, config)
    rate_factors(backbone, config.optim)  # before anything is allocated
    head = predict_head(config, world, precision, num_classes=num_classes)
    size, on_cpu = config.data.image_size, world.device.type == "cpu"
    held = blocks_of_training
    if config.model.fused:
        fuse_batch_norm(backbone)
    if config.model.checkpointing:
        checkpoint_blocks(backbone, config.architecture.family.stages)
        held = blocks_run_again
    activations = held(backbone, batch=batch // micro_batches, image_size=size, precision=precision)
    teacher = verification = 0
    if config.distill.teacher and not config.distill.cached:
        teacher = _teacher_bytes(
            config, batch=batch, precision=precision, run_on=world.device, besides=activations
        )
    if config.eval.sets:
        inference = blocks_of_inference(
            backbone,
            batch=config.eval.batch_size,
            image_size=size,
            precision=precision,
            run_on=world.device,
        )
        verification = _weight_bytes(backbone) + inference.beyond(activations)
        if on_cpu:
            verification += _TO_VERIFY + _TO_JUDGE * scored_images * config.model.embedding_dim
    states = _state_bytes(backbone, config.optim)
    rows = place_rows(head, place=config.head.place, prefetch=config.head.prefetch, on_cpu=on_cpu)
    return Prediction(
        libraries=_library_bytes(config.data) if on_cpu else 0,
        backbone=_backbone_bytes(backbone, config.optim),
        activations=sum(activations)
        + (activations.small // _IN_PIECES if config.model.checkpointing and on_cpu else 0),
        teacher=teacher,
        checkpoint=states + rows.copied + head.neighbors + head.expectations if on_cpu else 0,
        verification=verification,
        loader=_batches_ahead(config.data, world.device, world.local_world_size)
        * batch
        * (3 * config.data.image_size**2 + torch.int64.itemsize),
        **_parts_of_head(head, rows),
    )


def with_head(
    prediction: Prediction, config: Config, world: World, precision: Precision, *, num_classes: int
) -> Prediction:
    """The same on an accelerator with the head of `config`, where all else of the run is alike.

    For those who compare heads: the backbone, which takes a second, is not looked at again.
    """
    assert world.device.type != "cpu", "where a checkpoint's copy depends on the head"
    head = predict_head(config, world, precision, num_classes=num_classes)
    rows = place_rows(head, place=config.head.place, prefetch=config.head.prefetch, on_cpu=False)
    return replace(prediction, **_parts_of_head(head, rows))


def _parts_of_head(head: HeadMemory, rows: RowPlaces) -> dict[str, int]:
    return {
        "centers": rows.centers + head.expectations,
        "momentum": rows.momentum,
        "neighbors": head.neighbors,
        "transients": head.step,
        "fetched": rows.fetched,
        "host": rows.host,
        "disk": rows.disk,
    }


def predict_head(
    config: Config, world: World, precision: Precision, *, num_classes: int
) -> HeadMemory:
    """What the head takes of it, on the rank with the most centers."""
    micro_batches = config.step.micro_batches
    return predict_memory(
        shard_of(num_classes, rank=0, world_size=world.world_size),
        config.model.embedding_dim,
        largest_sampling(config, num_classes),
        global_batch=config.data.global_batch // micro_batches,
        subcenters=config.head.subcenters,
        compute_dtype=precision.head_dtype,
        centers_dtype=DTYPES[config.head.centers_dtype],
        momentum_dtype=DTYPES[config.head.momentum_dtype],
        momentum=config.centers_momentum > 0,
        adding=micro_batches > 1,
        extra_terms=create_extra_terms(config.head.extra_terms),
        expectations=bool(config.head.expectation_margins),
        world_size=world.world_size,
        neighbors=config.head.neighbors if config.head.hard_negatives else 0,
    )


def _library_bytes(data: DataConfig) -> int:
    """What the process has by now, and what its libraries take later in any run."""
    needs_dali = Augmentation(data.augment, mirrored_before=True).needs_graph
    loaded = _LOADED_LATER + LOADED_BEYOND_STEPS + (_TO_AUGMENT if needs_dali else 0)
    return own_memory() + loaded


def _backbone_bytes(backbone: nn.Module, optim: OptimConfig) -> int:
    """Weights, gradients, optimizer state and statistics; DDP's buckets are the gradients."""
    statistics = sum(buffer.nbytes for buffer in backbone.buffers())
    # A step keeps a copy of the statistics, to go back to.
    return _state_bytes(backbone, optim) + _trained_bytes(backbone) + statistics


def _state_bytes(backbone: nn.Module, optim: OptimConfig) -> int:
    """What a checkpoint has of the backbone: weights, statistics, and the optimizer's state."""
    states = 2 if optim.name == "adamw" else int(optim.momentum > 0)
    return _weight_bytes(backbone) + states * _trained_bytes(backbone)


def _weight_bytes(network: nn.Module) -> int:
    """Parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def _trained_bytes(backbone: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in backbone.parameters() if parameter.requires_grad)


def _teacher_bytes(
    config: Config, *, batch: int, precision: Precision, run_on: torch.device, besides: Blocks
) -> int:
    """The teacher's weights, and of its forward what exceeds the `besides` of the student's step.

    Its batch is not split into micro-batches. Of an ONNX file the size is taken for the weights.
    """
    given = config.distill.teacher
    if not os.path.exists(split_choice(given)[0]):  # nor for names that no file can have
        return 0  # its reader says what is wrong
    if given.endswith(".onnx"):
        parts = (Path(given), Path(f"{given}.data"))
        return sum(part.stat().st_size for part in parts if part.is_file())
    try:
        architecture = open_weights(given, checked=False).architecture
    except (WeightsError, CheckpointError):  # as above
        return 0
    with torch.device("meta"):
        network = architecture.create()
    size = architecture.image_size
    forward = blocks_of_inference(
        network, batch=batch, image_size=size, precision=precision, run_on=run_on
    )
    return _weight_bytes(network) + forward.beyond(besides)


def largest_sampling(config: Config, num_classes: int) -> Sampling:
    """The one of a run's samplings that takes most."""
    head = config.head
    if head.sample_groups:
        return GroupClasses(
            head.sample_groups, random_groups=head.random_groups, scope=head.groups_scope
        )
    changes = [epoch for epoch in head.sample_rate_from if epoch < config.run.epochs]
    rates = (head.sample_rate_at(epoch, num_classes=num_classes) for epoch in (0, *changes))
    return sampling_at(max(rates))


def _batches_ahead(data: DataConfig, device: torch.device, local_world_size: int) -> int:
    """Batches held at once: the one in use, and what DALI and, on a CPU, the threads prefetch."""
    batches = 1
    if device.type == "cpu":
        batches += (data.threads or choose_threads(local_world_size)) + PREFETCH
    if device.type != "cpu" or Augmentation(data.augment, mirrored_before=True).needs_graph:
        batches += PREFETCH
    return batches
