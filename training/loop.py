"""The run: what is checked before the first step, the steps, and what happens between epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import fold_batch_norm
from pipeline import counter
from pipeline.dali_decode import choose_decode_device
from pipeline.dali_loader import Batch, Loader, choose_threads
from pipeline.shuffle_report import report_shuffle
from training import checkpoint, resume
from training.assembly import create_step
from training.config import Config, check_batch
from training.data import TrainingData, count_classes, open_training_data
from training.distillation import create_distillation
from training.distributed import World, require_agreement, together
from training.doctor import Doctor
from training.memory import predict
from training.metrics import Meters, Position, Reporter, pace
from training.optim import set_learning_rate
from training.precision import Precision, set_determinism
from training.schedules import create_schedule
from training.step import Lap, StepResult
from training.step_graph import GraphedStep
from training.stopwatch import Laps, Stopwatch

Scores = Mapping[str, Mapping[str, float]]  # verification set → score → value
Evaluate = Callable[[nn.Module], Scores]


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
        check_batch(config, world.world_size)
        precision.apply()
        set_determinism(config.run.deterministic)
        data = open_training_data(config, world)
        num_classes = together(lambda: count_classes(data.records, config.head.num_classes))
        self.output = Path(config.run.output)
        facts = self._agree(data, num_classes)
        decoding = self._open_loader(data)
        self.schedule = create_schedule(
            config.optim,
            global_batch=config.data.global_batch,
            epochs=config.run.epochs,
            steps_per_epoch=self.loader.steps_per_epoch,
        )
        self.prediction = predict(
            config,
            num_classes=num_classes,
            world_size=world.world_size,
            local_world_size=world.local_world_size,
            device=world.device,
            precision=precision,
        )
        distillation = create_distillation(
            config,
            data.records,
            total_steps=self.schedule.total_steps,
            device=world.device,
            precision=precision,
        )
        require_agreement({"the teacher of distill": str(distillation)})
        self.step, self._about_backbone = create_step(
            config, world, distillation, num_classes=num_classes, precision=precision
        )
        # Only now: a folder claimed for what cannot be built would refuse the mended run.
        together(lambda: world.is_main and resume.claim(self.output, config, facts=facts))
        self.steps_done = 0
        self.last_checkpoint = resume.choose_checkpoint(self.output, config, facts=facts)
        if self.last_checkpoint:
            self.steps_done = checkpoint.load(self.last_checkpoint, train_step=self.step)
        self._saver = checkpoint.Saver(
            self.output, config=config, train_step=self.step, facts=facts
        )
        self._graphed = None
        if config.step.cuda_graph == "full":
            self._graphed = GraphedStep(self.step, world.device)
        self.reporter = Reporter(self.output, at=self._position()) if world.is_main else None
        self._doctor = Doctor(self.settings())
        self._introduce(data, decoding)

    def settings(self) -> dict[str, Any]:
        """Every setting as it is in force, what was automatic decided."""
        settings = {
            f"{section}.{key}": value
            for section, values in self.config.as_dict().items()
            for key, value in values.items()
        }
        return settings | {
            "data.threads": self.loader.threads,
            "data.decode": self.loader.decode,
            "head.backend": self.step.head.backend.name,
        }

    def _agree(self, data: TrainingData, num_classes: int) -> dict[str, Any]:
        """Make sure that all ranks mean the same run; returns what identifies it."""
        model = self.config.as_dict()["model"]
        facts = {
            "dataset": data.fingerprint,
            "number of classes": num_classes,
            "image size": self.config.data.image_size,
            "global batch": self.config.data.global_batch,
            "seed": self.config.run.seed,
            "head.loss": self.config.head.loss,
            "head.subcenters": self.config.head.subcenters,
            **{f"model.{key}": value for key, value in model.items() if key != "compile"},
        }
        everyone = {
            **{
                f"the version of {name}": version for name, version in checkpoint.versions().items()
            },
            "configuration": self.config.lines(),
            "precision": (self.world.device.type, str(self.precision.compute_dtype)),
            "the records that are kept, and their labels": data.records.digest(),
        }
        require_agreement(everyone | facts)
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

    def _introduce(self, data: TrainingData, decoding: str) -> None:
        """Say what is about to run, with everything that was derived."""
        if self.reporter is None:
            return
        world, head = self.world, self.step.head
        dropped = f", {self.loader.dropped} records left over" if self.loader.dropped else ""
        mixed = str(self.precision.compute_dtype).removeprefix("torch.")
        lines = [
            f"ranks      {world.world_size} on {world.device.type}",
            f"precision  {mixed}, because {self.precision.reason}",
            *(f"data       {line}" for line in data.records.summary_lines()),
            f"epoch      {self.loader.steps_per_epoch} steps{dropped}",
            f"order      {self.config.data.order}: {self.shuffle}",
            f"decoding   {decoding}",
            f"model      {self.config.model.name}, {self._about_backbone}",
            f"head       {head.margin}, {head.num_classes} classes, {head.sampling}; "
            f"{head.backend.name}, because {head.backend.reason}",
            f"rate       {self.schedule}",
            f"memory     {self.prediction}",
            *([f"teacher    {self.step.distillation}"] if self.step.distillation else []),
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
        self._saver.reserve()
        stream = self.loader.stream(*divmod(self.steps_done, self.loader.steps_per_epoch))
        try:
            with closing(stream):
                scores = self._run(stream)
            self.wait_for_checkpoint()
            return scores
        finally:
            self.close()

    def close(self) -> None:
        """Let go of recorded graphs, before ranks part, and of the files that are written to."""
        self.step.head.forget_graphs()
        if self._graphed:
            self._graphed.forget()
        self._saver.close()
        if self.reporter:
            self.reporter.close()

    def train_on(self, batch: Batch, lap: Lap) -> StepResult:
        """The next step, on this rank's batch; everything about it follows from its number."""
        self._seed_dropout()
        self._follow_head_schedules()
        lr = set_learning_rate(self.step.optimizer, self.schedule(self.steps_done))
        targets = None
        if self.step.distillation:
            self.step.distillation.set_step(self.steps_done)
            targets = self.step.distillation.targets(batch.images, batch.records)
        step = self._graphed or self.step
        result = step(batch.images, batch.labels, lr, lap, targets)
        self.steps_done += 1
        return result

    def _run(self, stream: Iterator[Batch]) -> Scores:
        config, per_epoch = self.config, self.loader.steps_per_epoch
        scores = self.verify() if self.steps_done == 0 else {}
        meters, stopwatch = Meters(self.world.device), Stopwatch(self.world.device)
        logged = first = self.steps_done
        while self.steps_done < self.schedule.total_steps:
            stopwatch.lap("other")
            batch = next(stream)
            stopwatch.lap("data")
            if self.steps_done == first and self.reporter:
                self.reporter.images(self._position(), batch.images)
            meters.add(self.train_on(batch, stopwatch.lap))
            last = self.steps_done == self.schedule.total_steps
            if self.reporter:
                self.reporter.advance(self._position())
            if (self.steps_done - first) % config.log.every == 0 or last:
                self._log(meters.read(), stopwatch.laps(), self.steps_done - logged)
                logged = self.steps_done
            epoch, into_epoch = divmod(self.steps_done, per_epoch)
            if into_epoch == 0:
                verified = epoch % config.eval.every == 0 or last
                if verified:
                    scores = self.verify()
                if epoch % config.run.save_every == 0 or last:
                    self.save(scores if verified else None)
                stopwatch.skip()
            elif config.run.save_steps and into_epoch % config.run.save_steps == 0:
                self.save()
                stopwatch.skip()
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

    def _log(self, means: dict[str, float], laps: Laps, steps: int) -> None:
        if self.reporter is None:
            return
        at = self._position()
        measured = pace(
            laps,
            steps=steps,
            images=self.config.data.global_batch,
            steps_left=at.total_steps - at.step,
        )
        reading = means | {"lr": self.schedule(self.steps_done - 1)} | measured
        self.reporter.training(at, reading)
        for line in self._doctor(reading):
            self.reporter.say(line)

    def verify(self) -> Scores:
        """Score the backbone on every verification set, on all ranks together."""
        checkpoint.average_statistics(self.step.backbone)
        # A copy, which is not compiled: batches of other sizes would be compiled anew.
        scores = self._evaluate(fold_batch_norm(checkpoint.unwrapped(self.step.backbone)))
        if self.reporter and scores:
            self.reporter.verification(self._position(), scores)
        return scores

    def save(self, scores: Scores | None = None) -> Path:
        """Begin to write a checkpoint of this moment, on all ranks together; returns its folder.

        scores: of this very moment, where it was verified.
        """
        checkpoint.average_statistics(self.step.backbone)
        path = self._saver.save(self.steps_done, scores)
        if self.reporter:
            self.reporter.say(f"saving {path}")
        return path

    def wait_for_checkpoint(self) -> None:
        """Wait until the last checkpoint is written; `last_checkpoint` is the newest that was."""
        self.last_checkpoint = self._saver.wait() or self.last_checkpoint
