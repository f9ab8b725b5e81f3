"""The run: what is checked before the first step, the steps, and what happens between epochs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from heads import HeadClasses, PartialFC, create_margin
from models import create_model
from pipeline import counter
from pipeline.dali_decode import choose_decode_device
from pipeline.dali_loader import Loader, choose_threads
from pipeline.shuffle_report import report_shuffle
from training import checkpoint
from training.config import Config, ConfigError
from training.data import TrainingData, count_classes, open_training_data
from training.distributed import World, require_agreement, together
from training.metrics import Meters, Position, Reporter
from training.optim import create_optimizer, set_learning_rate
from training.precision import Precision
from training.schedules import create_schedule
from training.step import TrainStep
from training.stopwatch import Stopwatch

Scores = Mapping[str, Mapping[str, float]]  # verification set → score → value
Evaluate = Callable[[nn.Module], Scores]


def create_backbone(config: Config, world: World) -> nn.Module:
    """The network on its device, wrapped for gradient averaging where there are ranks."""
    model = config.model
    if model.sync_bn and world.device.type == "cpu":
        raise ConfigError("model.sync_bn=True: expected a GPU, torch has no such layer for CPUs")
    torch.manual_seed(config.run.seed)
    backbone = create_model(
        model.name,
        num_features=model.embedding_dim,
        dropout=model.dropout,
        width=model.width,
        image_size=config.data.image_size,
    ).to(world.device)
    if model.sync_bn:
        backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    if world.world_size == 1:
        return backbone
    # The name under which torch is told not to send BatchNorm's statistics around at every step.
    parameters = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    return DistributedDataParallel(
        backbone,
        device_ids=None if world.device.type == "cpu" else [world.device],
        **{sync: False},
        gradient_as_bucket_view=True,
        static_graph=True,
    )


class Trainer:
    """A run, built and checked; `run` trains it to the end.

    Args:
        config: all there is to know.
        world: this rank; the process group must stand.
        precision: what the step computes in.
        evaluate: scores a backbone on the verification sets; called on every rank.

    Raises:
        ValueError: a subclass of it for whatever cannot be run: configuration, files, checkpoint.
    """

    def __init__(
        self, config: Config, world: World, *, precision: Precision, evaluate: Evaluate
    ) -> None:
        self.config, self.world = config, world
        self.precision, self._evaluate = precision, evaluate
        if config.data.global_batch < 2 * world.world_size:
            raise ConfigError(
                f"data.global_batch={config.data.global_batch}: expected at least two images for "
                f"each of {world.world_size} ranks, whose BatchNorm cannot do with one"
            )
        data = open_training_data(config, world)
        num_classes = count_classes(data.records, config.head.num_classes)
        self.output = Path(config.run.output)
        facts = self._agree(data, num_classes)
        decoding = self._open_loader(data)
        self.schedule = create_schedule(
            config.optim,
            global_batch=config.data.global_batch,
            epochs=config.run.epochs,
            steps_per_epoch=self.loader.steps_per_epoch,
        )
        self.step = self._build_step(num_classes)
        # Only now: a folder claimed for what cannot be built would refuse the mended run.
        together(lambda: world.is_main and checkpoint.claim(self.output, config, facts=facts))
        self.steps_done = 0
        self.last_checkpoint = checkpoint.newest(self.output)
        require_agreement({"the newest checkpoint of run.output": str(self.last_checkpoint)})
        if self.last_checkpoint:
            self.steps_done = checkpoint.load(self.last_checkpoint, train_step=self.step)
        self.reporter = Reporter(self.output, at=self._position()) if world.is_main else None
        self._introduce(data, decoding)

    def _agree(self, data: TrainingData, num_classes: int) -> dict[str, Any]:
        """Make sure that all ranks mean the same run; returns what identifies it."""
        facts = {
            "dataset": data.fingerprint,
            "number of classes": num_classes,
            "image size": self.config.data.image_size,
            "global batch": self.config.data.global_batch,
            "seed": self.config.run.seed,
            "head.loss": self.config.head.loss,
            "head.subcenters": self.config.head.subcenters,
            **{f"model.{key}": value for key, value in self.config.as_dict()["model"].items()},
        }
        require_agreement(
            {"torch": torch.__version__, "configuration": self.config.lines()} | facts
        )
        return facts

    def _open_loader(self, training: TrainingData) -> str:
        """Open this rank's stream; returns where and how it decodes, for the log."""
        data, world = self.config.data, self.world
        decode, why = choose_decode_device(world.device)
        if data.decode != "auto":
            decode, why = data.decode, "the configuration asks for it"
        threads = data.threads or choose_threads(world.local_world_size)
        self.loader = Loader(
            training.records,
            order=training.order,
            epoch_records=training.epoch_records,
            global_batch=data.global_batch,
            rank=world.rank,
            world_size=world.world_size,
            seed=self.config.run.seed,
            device=world.device,
            decode=decode,
            augment=data.augment,
            image_size=data.image_size,
            threads=threads,
            max_bad_fraction=data.max_bad_fraction,
        )
        self.shuffle = report_shuffle(
            training.order,
            training.records.labels,
            epoch_records=training.epoch_records,
            global_batch=data.global_batch,
            seed=self.config.run.seed,
        )
        return f"{self.loader} ({why})"

    def _build_step(self, num_classes: int) -> TrainStep:
        """Allocate head, backbone and optimizer."""
        config, device = self.config, self.world.device
        head_sampling = None
        if config.head.sample_heads:
            head_sampling = HeadClasses(
                config.head.sample_heads,
                random_heads=config.head.random_heads,
                scope=config.head.heads_scope,
            )
        head = PartialFC(
            num_classes=num_classes,
            embedding_dim=config.model.embedding_dim,
            margin=create_margin(config.head.loss, **config.head.loss_args),
            sample_rate=config.head.sample_rate_at(0),
            head_sampling=head_sampling,
            subcenters=config.head.subcenters,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
            seed=config.run.seed,
            compute_dtype=self.precision.head_dtype,
            backend=config.head.backend,
            cuda_graph=config.head.cuda_graph,
            device=device,
        )
        backbone = create_backbone(config, self.world)
        backbone.train()
        return TrainStep(
            backbone,
            head,
            create_optimizer(backbone.parameters(), config.optim, device),
            precision=self.precision,
            clip=config.optim.clip,
            world_size=self.world.world_size,
        )

    def _introduce(self, data: TrainingData, decoding: str) -> None:
        """Say what is about to run, with everything that was derived."""
        if self.reporter is None:
            return
        world, head = self.world, self.step.head
        trained = sum(p.numel() for p in self.step.backbone.parameters() if p.requires_grad)
        dropped = f", {self.loader.dropped} records left over" if self.loader.dropped else ""
        mixed = str(self.precision.compute_dtype).removeprefix("torch.")
        lines = [
            f"ranks      {world.world_size} on {world.device.type}",
            f"precision  {mixed}, because {self.precision.reason}",
            *(f"data       {line}" for line in data.records.summary_lines()),
            f"epoch      {self.loader.steps_per_epoch} steps{dropped}",
            f"order      {self.config.data.order}: {self.shuffle}",
            f"decoding   {decoding}",
            f"model      {self.config.model.name}, {trained / 1e6:.2f} M parameters",
            f"head       {head.margin}, {head.num_classes} classes, {head.sampling}; "
            f"{head.backend.name}, because {head.backend.reason}",
            f"rate       {self.schedule}",
            f"output     {self.output}"
            + (f", resumed from {self.last_checkpoint.name}" if self.last_checkpoint else ""),
        ]
        for line in (*self.config.lines(), *lines):
            self.reporter.say(line)
        self.reporter.text("config", "\n".join(f"    {line}" for line in self.config.lines()))

    def _position(self) -> Position:
        return Position(
            step=self.steps_done,
            epoch=self.steps_done / self.loader.steps_per_epoch,
            total_steps=self.schedule.total_steps,
        )

    def run(self) -> Scores:
        """Train to the last step, verifying and saving on the way; returns the last scores."""
        try:
            return self._run()
        finally:
            self.step.head.forget_graphs()
            if self.reporter:
                self.reporter.close()

    def _run(self) -> Scores:
        config, per_epoch = self.config, self.loader.steps_per_epoch
        scores = self.verify() if self.steps_done == 0 else {}
        stream = self.loader.stream(*divmod(self.steps_done, per_epoch))
        meters, stopwatch = Meters(self.world.device), Stopwatch(self.world.device)
        logged = first = self.steps_done
        while self.steps_done < self.schedule.total_steps:
            images, labels, _ = next(stream)
            stopwatch.lap("data")
            if self.steps_done == first and self.reporter:
                self.reporter.images(self._position(), images)
            self._seed_dropout()
            self._follow_head_schedules()
            rate = self.schedule(self.steps_done)
            lr = set_learning_rate(self.step.optimizer, rate)
            meters.add(self.step(images, labels, lr, stopwatch))
            self.steps_done += 1
            last = self.steps_done == self.schedule.total_steps
            if self.reporter:
                self.reporter.advance(self._position())
            if (self.steps_done - first) % config.log.every == 0 or last:
                self._log(rate, meters.read(), stopwatch.read(), self.steps_done - logged)
                logged = self.steps_done
            epoch, into_epoch = divmod(self.steps_done, per_epoch)
            if into_epoch == 0:
                if epoch % config.eval.every == 0 or last:
                    scores = self.verify()
                if epoch % config.run.save_every == 0 or last:
                    self.save()
                stopwatch.lap("between epochs")
        return scores

    def _seed_dropout(self) -> None:
        """Dropout depends on the step alone, so that a resumed run repeats it."""
        words = (self.config.run.seed, self.steps_done, self.world.rank, "dropout")
        torch.manual_seed(counter.word(*words))

    def _follow_head_schedules(self) -> None:
        """Set what of the head depends on the step alone: sample rate and share of the margin."""
        config, head, per_epoch = self.config.head, self.step.head, self.loader.steps_per_epoch
        sample_rate = config.sample_rate_at(self.steps_done // per_epoch)
        if sample_rate != head.sample_rate:
            head.sample_rate = sample_rate
        warmup = config.margin_warmup_epochs * per_epoch
        head.margin_factor.fill_(min(1.0, (self.steps_done + 1) / (warmup + 1)))

    def _log(
        self, rate: float, means: dict[str, float], seconds: dict[str, float], steps: int
    ) -> None:
        if self.reporter is None:
            return
        seconds.pop("between epochs", None)
        per_step = sum(seconds.values()) / steps
        at = self._position()
        scalars = means | {
            "lr": rate,
            "images_per_s": self.config.data.global_batch / per_step,
            "seconds_left": per_step * (at.total_steps - at.step),
        }
        phases = {phase: passed / steps for phase, passed in seconds.items()}
        self.reporter.training(at, scalars, phases)

    def verify(self) -> Scores:
        """Score the backbone on every verification set, on all ranks together."""
        checkpoint.average_statistics(self.step.backbone)
        scores = self._evaluate(checkpoint.unwrapped(self.step.backbone))
        if self.reporter and scores:
            self.reporter.verification(self._position(), scores)
        return scores

    def save(self) -> Path:
        """Write a checkpoint of this moment, on all ranks together."""
        checkpoint.average_statistics(self.step.backbone)
        self.last_checkpoint = checkpoint.save(
            self.output, step=self.steps_done, config=self.config, train_step=self.step
        )
        if self.reporter:
            self.reporter.say(f"saved {self.last_checkpoint}")
        return self.last_checkpoint
