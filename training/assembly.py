"""The building of a run: first the plan, for which nothing is allocated, then what takes its steps.

Training runs what is built here, a dry run measures it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from heads import (
    GroupClasses,
    HardNegatives,
    PartialFC,
    create_extra_terms,
    create_margin,
)
from heads.rows.stored import DTYPES
from pipeline import counter
from pipeline.dali_decode import choose_decode_device
from pipeline.dali_loader import Batch, Loader, choose_threads
from training.config import Config, check_batch
from training.data import (
    TrainingData,
    columns_of_head,
    count_classes,
    open_training_data,
    warn_of_empty_classes,
)
from training.distill.distillation import Distillation, create_distillation
from training.distributed import World, require_agreement, together
from training.facts import agree
from training.planning.memory import Prediction, predict
from training.planning.out_of_memory import memory_explained, require_memory
from training.planning.row_places import place_folder
from training.scored_sets import ScoredSet
from training.setting_names import settings_named
from training.staging import use_copies
from training.step.backbone import create_backbone, unwrapped
from training.step.graphed_step import GraphedStep
from training.step.learning import rate_factors
from training.step.optim import create_optimizer, set_learning_rate
from training.step.precision import Precision, set_determinism
from training.step.schedules import Schedule, create_schedule
from training.step.train_step import Lap, StepResult, TrainStep

# Those that a loader's errors may be about.
_LOADER_SETTINGS = (
    *("data.global_batch", "data.augment", "data.decode"),
    *("data.image_size", "data.max_bad_fraction", "data.columns"),
)


@dataclass(frozen=True)
class Plan:
    """A run before anything is allocated for it; the same on every rank but for the loader.

    Attributes:
        num_classes: of the head, of all ranks together.
        facts: what identifies the run; see training.facts.
        loader: this rank's stream; `decoding` says where and why there it decodes.
        schedule: of the learning rate; it knows how many steps there are.
        prediction: the memory that a rank will take.
        staged: what data.stage has of the set, in words; empty without.
    """

    config: Config
    world: World
    precision: Precision
    data: TrainingData
    num_classes: int
    facts: dict[str, Any]
    loader: Loader
    decoding: str
    schedule: Schedule
    prediction: Prediction
    staged: str


def plan(
    config: Config, world: World, precision: Precision, *, sets: Sequence[ScoredSet] = ()
) -> Plan:
    """Open the data and see that all ranks mean the same run; call it on every rank.

    Sets what torch keeps for the whole process: determinism, and how float32 products are rounded.

    Args:
        sets: that the backbone is scored on.

    Raises:
        UserError: a subclass of it for whatever cannot be run.
    """
    check_batch(config, world.world_size)
    precision.apply()
    set_determinism(config.run.deterministic)
    data = open_training_data(config, world)
    staged = use_copies(config, world, data.records)
    num_classes = together(lambda: count_classes(data.records, config.head.num_classes))
    together(lambda: world.is_main and warn_of_empty_classes(data.records, config.head.num_classes))
    facts = agree(config, world, precision, data, num_classes=num_classes)
    loader, decoding = create_loader(config, world, data)
    schedule = create_schedule(
        config.optim,
        global_batch=config.data.global_batch,
        epochs=config.run.epochs,
        steps_per_epoch=loader.steps_per_epoch,
    )
    return Plan(
        config=config,
        world=world,
        precision=precision,
        data=data,
        num_classes=num_classes,
        facts=facts,
        loader=loader,
        decoding=decoding,
        schedule=schedule,
        prediction=predict(
            config,
            world,
            precision,
            num_classes=num_classes,
            scored_images=max((one.images for one in sets), default=0),
        ),
        staged=staged,
    )


@dataclass(frozen=True)
class Assembly:
    """A run with everything that its steps take; `train` takes them.

    Attributes:
        about_backbone: how it runs, for the log.
        graphed: the step as one CUDA graph, with step.cuda_graph=full.
    """

    plan: Plan
    step: TrainStep
    about_backbone: str
    graphed: GraphedStep | None

    def train(self, number: int, batch: Batch, lap: Lap, *, rate_factor: float = 1.0) -> StepResult:
        """The step of that number, on this rank's batch; everything else about it follows from it.

        Args:
            rate_factor: of the learning rate that the schedule has for it.
        """
        self._seed_dropout(number)
        self._follow_head_schedules(number)
        self._follow_freezing(number)
        lr = set_learning_rate(self.step.optimizer, self.plan.schedule(number) * rate_factor)
        targets = None
        if self.step.distillation:
            self.step.distillation.set_step(number)
            targets = self.step.distillation.targets(batch.images, batch.records)
            lap("teacher")
        step = self.graphed or self.step
        return step(batch.images, batch.labels, lr, lap, targets, batch.columns)

    def announce(self, at: int) -> None:
        """Tell a head that fetches its centers what comes after the batch of global step `at`."""
        head = self.step.head
        if head.place != "device":
            for ahead in range(1, head.prefetch + 1):
                head.announce(self.plan.loader.global_labels(at + ahead), ahead=ahead)

    def settings(self) -> dict[str, Any]:
        """Every setting as it is in force, what was automatic decided."""
        settings = self.plan.config.settings()
        if self.plan.config.head.sample_count:
            del settings["head.sample_rate"]  # which the count decides
        return settings | {
            "run.device": self.plan.world.device.type,
            "data.threads": self.plan.loader.threads,
            "data.decode": self.plan.loader.decode,
            "head.backend": self.step.head.backend.name,
        }

    def forget_graphs(self) -> None:
        """Let go of recorded graphs: before ranks part."""
        self.step.head.forget_graphs()
        if self.graphed:
            self.graphed.forget()

    def _seed_dropout(self, number: int) -> None:
        """Dropout depends on the step alone, so that a resumed run repeats it."""
        words = (self.plan.config.run.seed, number, self.plan.world.rank, "dropout")
        torch.manual_seed(counter.word(*words))

    def _follow_head_schedules(self, number: int) -> None:
        """Set what of the head depends on the step alone: rate, penalty, share of the margin."""
        config, head = self.plan.config.head, self.step.head
        per_epoch = self.plan.loader.steps_per_epoch
        epoch = number // per_epoch
        head.sample_rate = config.sample_rate_at(epoch, num_classes=head.num_classes)
        head.expectation_margin = config.expectation_margin_at(epoch)
        warmup = config.margin_warmup_epochs * per_epoch
        head.margin_factor.fill_(min(1.0, (number + 1) / (warmup + 1)))

    def _follow_freezing(self, number: int) -> None:
        """In the first epochs, as many as optim.freeze_epochs says, the backbone stays."""
        first = round(self.plan.config.optim.freeze_epochs * self.plan.loader.steps_per_epoch)
        if first:
            self.step.centers_alone.fill_(number < first)


def assemble(plan: Plan) -> Assembly:
    """Allocate teacher, backbone, head and optimizer; call it on every rank.

    Raises OutOfMemoryError where they are predicted not to fit, or do not, and UserError, a
    subclass of it, for what cannot be built.
    """
    config, world, precision = plan.config, plan.world, plan.precision
    require_memory(config, world, plan.prediction)
    with memory_explained(config, world, plan.prediction):
        distillation = create_distillation(
            config,
            plan.data.records,
            total_steps=plan.schedule.total_steps,
            device=world.device,
            precision=precision,
        )
        require_agreement({"the teacher of distill": str(distillation)})
        step, about = create_step(
            config, world, distillation, num_classes=plan.num_classes, precision=precision
        )
    graphed = GraphedStep(step, world.device) if config.step.cuda_graph == "full" else None
    return Assembly(plan, step, about, graphed)


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
        create_optimizer(
            backbone.parameters(),
            config.optim,
            world.device,
            undecayed=config.architecture.family.undecayed_in(backbone),
            factors=rate_factors(unwrapped(backbone), config.optim),
        ),
        distillation,
        precision=precision,
        clip=config.optim.clip,
        head_lr_ratio=(config.head.lr or config.optim.lr) / config.optim.lr,
        micro_batches=config.step.micro_batches,
        world_size=world.world_size,
    )
    return step, about


@settings_named("head.place", "head.place_path")
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
    near = None
    if head.hard_negatives:
        near = HardNegatives(
            share=head.hard_negatives, neighbors=head.neighbors, every=head.neighbors_every
        )
    return PartialFC(
        num_classes=num_classes,
        embedding_dim=config.model.embedding_dim,
        margin=create_margin(head.loss, **head.loss_args),
        extra_terms=create_extra_terms(head.extra_terms),
        expectation_margin=next(iter(head.expectation_margins), None),
        columns=columns_of_head(config),
        sample_rate=head.sample_rate_at(0, num_classes=num_classes),
        group_sampling=groups,
        hard_negatives=near,
        subcenters=head.subcenters,
        momentum=config.centers_momentum,
        weight_decay=optim.weight_decay if head.weight_decay is None else head.weight_decay,
        seed=config.run.seed,
        compute_dtype=precision.head_dtype,
        centers_dtype=DTYPES[head.centers_dtype],
        momentum_dtype=DTYPES[head.momentum_dtype],
        backend=head.backend,
        place=head.place,
        place_path=place_folder(config) if head.place == "disk" else None,
        prefetch=head.prefetch,
        cuda_graph=config.step.cuda_graph == "head",
        device=world.device,
    )


def create_loader(config: Config, world: World, training: TrainingData) -> tuple[Loader, str]:
    """This rank's stream; returns where and how it decodes, too, for the log."""
    data = config.data
    decode, why = choose_decode_device(world.device)
    if data.decode != "auto":
        decode, why = data.decode, "the configuration asks for it"
    with settings_named(*_LOADER_SETTINGS):
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
            columns=training.columns,
            handed=columns_of_head(config),
            image_size=data.image_size,
            threads=data.threads or choose_threads(world.local_world_size),
            max_bad_fraction=data.max_bad_fraction,
        )
    return loader, f"{loader} ({why})"


def stream_batches(loader: Loader, epoch: int = 0, step: int = 0) -> Generator[Batch, None, None]:
    """The loader's `stream`, whose errors name the settings that they are about."""
    with settings_named(*_LOADER_SETTINGS):
        yield from loader.stream(epoch, step)
