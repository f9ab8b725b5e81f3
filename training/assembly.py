"""Loader, head, backbone and optimizer as the configuration wants them."""

from __future__ import annotations

from heads import GroupClasses, PartialFC, create_margin
from pipeline.dali_decode import choose_decode_device
from pipeline.dali_loader import Loader, choose_threads
from training.backbone import create_backbone
from training.config import Config
from training.data import TrainingData
from training.distill.distillation import Distillation
from training.distributed import World
from training.optim import create_optimizer
from training.precision import Precision
from training.step import TrainStep


def create_step(
    config: Config,
    world: World,
    distillation: Distillation | None = None,
    *,
    num_classes: int,
    precision: Precision,
) -> tuple[TrainStep, str]:
    """Allocate everything a step needs; returns how the backbone runs, too, for the log."""
    backbone, about = create_backbone(config, world, precision)
    step = TrainStep(
        backbone,
        create_head(config, world, num_classes=num_classes, precision=precision),
        create_optimizer(backbone.parameters(), config.optim, world.device),
        distillation,
        precision=precision,
        clip=config.optim.clip,
        head_lr_ratio=(config.head.lr or config.optim.lr) / config.optim.lr,
        micro_batches=config.step.micro_batches,
        world_size=world.world_size,
    )
    return step, about


def create_head(
    config: Config, world: World, *, num_classes: int, precision: Precision
) -> PartialFC:
    """This rank's share of the class centers."""
    head, optim = config.head, config.optim
    groups = None
    if head.sample_groups:
        groups = GroupClasses(
            head.sample_groups, random_groups=head.random_groups, scope=head.groups_scope
        )
    return PartialFC(
        num_classes=num_classes,
        embedding_dim=config.model.embedding_dim,
        margin=create_margin(head.loss, **head.loss_args),
        sample_rate=head.sample_rate_at(0),
        group_sampling=groups,
        subcenters=head.subcenters,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay if head.weight_decay is None else head.weight_decay,
        seed=config.run.seed,
        compute_dtype=precision.head_dtype,
        backend=head.backend,
        cuda_graph=config.step.cuda_graph == "head",
        device=world.device,
    )


def create_loader(config: Config, world: World, training: TrainingData) -> tuple[Loader, str]:
    """This rank's stream; returns where and how it decodes, too, for the log."""
    data = config.data
    decode, why = choose_decode_device(world.device)
    if data.decode != "auto":
        decode, why = data.decode, "the configuration asks for it"
    loader = Loader(
        training.records,
        order=training.order,
        epoch_records=training.epoch_records,
        global_batch=data.global_batch,
        rank=world.rank,
        world_size=world.world_size,
        seed=config.run.seed,
        device=world.device,
        decode=decode,
        augment=data.augment,
        image_size=data.image_size,
        threads=data.threads or choose_threads(world.local_world_size),
        max_bad_fraction=data.max_bad_fraction,
    )
    return loader, f"{loader} ({why})"
