"""The run: its steps, and what happens between them; start.py has what comes before the first."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

from pipeline.dali_loader import Batch
from training.assembly import stream_batches
from training.config import Config
from training.distributed import World, from_main, together
from training.faults.agreement import Reason
from training.faults.rollback import Rollback, gather_bad_steps
from training.faults.stops import Stopped, Stops
from training.faults.watchdog import Watchdog
from training.health.facts import Facts
from training.planning.out_of_memory import memory_explained
from training.reporting.doctor import Doctor
from training.reporting.forecast import Forecast
from training.reporting.introduction import introduce_start
from training.reporting.journal import Position
from training.reporting.meters import Meters, pace
from training.reporting.reporter import Reporter
from training.reporting.stopwatch import Laps, Stopwatch
from training.saving import checkpoint
from training.saving.files import Scores, counters, read_about, remove_beyond
from training.saving.room import Room, require_room
from training.saving.run_state import describe
from training.saving.saver import Saver
from training.saving.saves import Saves
from training.scored_sets import ScoredSet, compared
from training.staging import copying
from training.start import start
from training.step.backbone import average_statistics
from training.step.precision import Precision
from training.step.train_step import Lap, StepResult
from training.verification import Verification


class Trainer:
    """A run, built and checked; `run` trains it to the end.

    Args:
        config: all there is to know.
        world: this rank; the process group must stand.
        precision: what the step computes in.
        sets: what its backbone is scored on.
        stops: entered, and following on every rank; without them nothing stops the run.

    Raises:
        UserError: a subclass of it for whatever cannot be run: configuration, files, checkpoint.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        *,
        precision: Precision,
        sets: Sequence[ScoredSet] = (),
        stops: Stops | None = None,
    ) -> None:
        self.config, self.world, self._sets = config, world, sets
        if stops is None:
            stops = Stops()
            stops.follow(config.run, world)
        self._stops, self._watchdog = stops, Watchdog(config.run, world)
        self.output = Path(config.run.output)
        begun = start(
            config, world, precision, sets=sets, stops=self._stops, watchdog=self._watchdog
        )
        self._held, self.assembly, self.steps_done = begun.held, begun.assembly, begun.steps_done
        self.step, planned = self.assembly.step, self.assembly.plan
        self.loader, self.schedule = planned.loader, planned.schedule
        self.prediction = planned.prediction
        gone_back = counters(begun.checkpoint) if begun.checkpoint else {}
        self.rollback = Rollback(config.run.max_nonfinite, gone_back.get("times_gone_back", 0))
        self._saver = Saver(
            self.output,
            config=config,
            train_step=self.step,
            facts=planned.facts,
            lock=self._held.lock if self._held else None,
            compared_by=compared(sets),
        )
        if self._held:
            self._saver.on_saved = self._held.state.saved
        self._meters = Meters(world.device)
        self.reporter = self._open_reporter() if world.is_main else None
        self._saves = Saves(self._saver, self._watchdog, count=self._counted, say=self._say)
        self._averaged_at = -1  # the step after which BatchNorm's statistics were averaged
        if begun.checkpoint:
            self._saves.resume(begun.checkpoint, self.steps_done)
            self._averaged_at = self.steps_done
        self._doctor = Doctor(self.assembly.settings())
        per_epoch = self.loader.steps_per_epoch
        self._forecast = Forecast(config, sets=sets, steps_per_epoch=per_epoch, device=world.device)
        self._verification = Verification(self.assembly, sets, self._forecast)
        if self.reporter:
            self.reporter.introduce(config, introduce_start(begun, sets))

    def run(self) -> Scores:
        """Train to the last step, verifying and saving on the way; returns the last scores.

        Raises:
            Stopped: a signal or run.max_hours asked for it; the run is saved.
            DivergedError: steps stay non-finite, and going back has not helped.
            RecordError: files that are cut off, gone, or full of bad images.
            CheckpointError: there is no room for the checkpoints, or they cannot be written.
            OutOfMemoryError: memory has run out.
        """
        try:
            with self._memory_explained():
                self._saver.reserve()
            self.require_room()
            with self._memory_explained(), self._stops.stepping(), self._watchdog:
                scores = self._first_scores()
                with self._copying():
                    while not self._at_end():
                        at = divmod(self.steps_done, self.loader.steps_per_epoch)
                        with closing(stream_batches(self.loader, *at)) as stream:
                            scores = self._train(stream, scores)
                self._require_saved()
                self._note_end("finished", why="all steps are done", exit_code=os.EX_OK)
            if self.reporter:
                self.reporter.finish(self.config.settings(), scores)
                self.reporter.findings.write()
            return scores
        except Stopped:
            if self.reporter:
                self.reporter.findings.write()
            raise
        except Exception as error:
            loss = self._stops.explain(error)
            if self.reporter:
                self.reporter.note(loss or describe(error))
            if self._held:
                self._held.state.fail(error, loss=loss, step=self.steps_done)
            raise
        finally:
            self.close()

    def _train(self, stream: Iterator[Batch], scores: Scores) -> Scores:
        """Train to the last step; or until the run goes back, which wants another stream."""
        every, watchdog = self.config.log.every, self._watchdog
        meters = self._meters = Meters(self.world.device)
        stopwatch = Stopwatch(self.world.device)
        logged = first = self.steps_done
        while not self._at_end():
            if reason := self._stops.requested():
                self._stop(reason)
            stopwatch.lap("other")
            watchdog.beat(self.steps_done, "waiting for data")
            batch = next(stream)
            stopwatch.lap("data")
            watchdog.beat(self.steps_done, "training")
            if self.steps_done == first and self.reporter:
                self.reporter.images(self._position(), batch.images)
            warm = self.steps_done > first
            with nullcontext() if warm else watchdog.paused("the first step"):
                result = self.train_on(batch, stopwatch.lap)
            self._stops.step_done()
            meters.add(result)
            if self.reporter:
                self.reporter.advance(self._position())
                if line := self._forecast.step(self.steps_done):
                    self.reporter.say(f"time       {line}")
            if (self.steps_done - first) % every == 0 or self._at_end():
                watchdog.beat(self.steps_done, "reading meters")
                means = meters.read()
                self._log(means, stopwatch.laps(), self.steps_done - logged)
                logged = self.steps_done
                skipped, scale = means["skipped_in_a_row"], means["loss_scale"]
                if self.rollback.due(skipped_in_a_row=skipped, loss_scale=scale):
                    self._go_back(int(skipped), result, batch)
                    return scores
            scores = self._after_step(scores, stopwatch)
        return scores

    def train_on(self, batch: Batch, lap: Lap) -> StepResult:
        """The next step, on this rank's batch."""
        factor = self.rollback.factor
        self.assembly.announce(self.steps_done)
        result = self.assembly.train(self.steps_done, batch, lap, rate_factor=factor)
        self.steps_done += 1
        return result

    def _after_step(self, scores: Scores, stopwatch: Stopwatch) -> Scores:
        """Save and verify where it is time to; returns the last scores."""
        run = self.config.run
        epoch, into_epoch = divmod(self.steps_done, self.loader.steps_per_epoch)
        if into_epoch == 0:
            # Saved first: verifying may take long or fail, and must not cost the epoch.
            if epoch % run.save_every == 0 or self._at_end():
                self.save()
        elif run.save_steps and into_epoch % run.save_steps == 0:
            self.save()
        due = self._verification.due(self.steps_done)
        if due:
            scores = self.verify(due)
        if due or into_epoch == 0:
            stopwatch.skip()
        return scores

    def verify(self, names: Collection[str] | None = None) -> Scores:
        """Score the backbone on sets of these names, or on all; on all ranks together."""
        scores: dict[str, Mapping[str, float]] = {}
        if names is None:
            names = [one.name for one in self._sets]
        with self._watchdog.paused("verification"):
            self._average_statistics()
            for name, found in self._verification.score(self.steps_done, names):
                # At once: another set may take hours.
                scores[name] = found.scores
                self._saver.add_scores(self.steps_done, {name: found.scores})
                if self.reporter:
                    self._require_lock()
                    self.reporter.verification(self._position(), {name: found.scores})
                    model = self._verification.model(self.steps_done)
                    self.reporter.findings.add(self._position(), model, found)
        return scores

    def _first_scores(self) -> Scores:
        """The scores of the state that the run begins at, where they are due.

        A run that ended between saving and verifying, or before its checkpoint got the scores,
        makes up for it here.
        """
        due = self._verification.due(self.steps_done)
        if not due:
            return {}
        known = from_main(self._known_scores(due)) if self.steps_done else {}
        if known.keys() == set(due):
            return known
        # The last state's results make up the report, which is of all sets.
        missing = [name for name in due if name not in known or self._at_end()]
        return {**known, **self.verify(missing)}

    def _known_scores(self, due: Collection[str]) -> Scores:
        """The present state's scores on these sets, where checkpoint or metrics.jsonl has them."""
        if self.reporter is None or self.last_checkpoint is None:
            return {}
        saved = read_about(self.last_checkpoint)["scores"] or {}
        scores = self.reporter.verified(self.steps_done) | saved
        if scores.keys() > saved.keys():
            self._saver.add_scores(self.steps_done, scores)
        return {name: scores[name] for name in due if name in scores}

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest that was completed, as far as was waited for."""
        return self._saves.last

    def save(self) -> None:
        """Begin to write a checkpoint of this moment, on all ranks together; see Saves.begin."""
        self._average_statistics()
        self._saves.begin(self.steps_done)

    def wait_for_checkpoint(self) -> None:
        """Wait until the last checkpoint is written."""
        self._saves.wait()

    def _require_saved(self) -> None:
        self._average_statistics()
        self._saves.require(self.steps_done)

    def _average_statistics(self) -> None:
        """Once a step: what is verified has the very bits of what is saved."""
        if self._averaged_at != self.steps_done:
            average_statistics(self.step.backbone)
            self._averaged_at = self.steps_done

    def _stop(self, reason: Reason) -> None:
        """Save and raise Stopped, on all ranks after the same step."""
        self._require_saved()
        self._note_end("stopped", why=str(reason), exit_code=reason.exit_code)
        raise Stopped(reason)

    def _go_back(self, skipped: int, result: StepResult, batch: Batch) -> None:
        """Load the newest checkpoint from before `skipped` steps in a row; the rate is halved.

        Raises DivergedError, on every rank, where there is none or it has been tried enough.
        """
        with self._watchdog.paused("going back"):
            self._saves.wait()
            path = self.rollback.choose(
                self.output,
                step=self.steps_done,
                skipped=skipped,
                seen=lambda: gather_bad_steps(result, batch, self.assembly.plan.data.records),
            )
            self.steps_done = self._averaged_at = checkpoint.load(path, train_step=self.step)
            self._saves.resume(path, self.steps_done)
            if self.world.is_main:  # the others have the same weights, of which nothing comes
                remove_beyond(self.output, self.steps_done)
            self.rollback.times += 1
            scaler = self.step.scaler
            if scaler.is_enabled():
                scaler.update(scaler.get_scale() * self.rollback.factor)
            if self.assembly.graphed:
                self.assembly.graphed.forget()
            if self._held:
                self._held.state.begin(self.steps_done, path)
            if self.reporter:
                self.reporter.go_back(self._position())
            self._say(
                f"{skipped} steps in a row were not finite and changed nothing: back to step "
                f"{self.steps_done}, learning rate × {self.rollback.factor:g}"
            )

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
        rate = self.schedule(self.steps_done - 1) * self.rollback.factor
        reading = means | {"lr": rate} | measured
        self._require_lock()
        self.reporter.training(at, reading)
        if not self._at_end():  # when nothing can be changed any more
            for line in self._doctor(reading):
                self.reporter.say(line)

    def require_room(self) -> None:
        """Make sure that the checkpoints to come fit on run.output's disk."""
        done, per_epoch = self.steps_done, self.loader.steps_per_epoch

        def ask() -> Room:
            return require_room(self.config, self.step, steps_done=done, steps_per_epoch=per_epoch)

        self._say(f"room       {together(lambda: self.world.is_main and ask())}")

    def close(self) -> None:
        """Let go of recorded graphs, before ranks part, and of the files that are written to."""
        self.assembly.forget_graphs()
        self._saver.close()
        if self.reporter:
            self.reporter.close()
        if self._held:
            self._held.lock.release()

    def _open_reporter(self) -> Reporter:
        planned = self.assembly.plan
        return Reporter(
            self.output,
            at=self._position(),
            scales_losses=self.step.scaler.is_enabled(),
            also=self.config.log.also,
            pictures=self.config.log.pictures,
            facts=Facts.of(
                self.config,
                classes=planned.num_classes,
                steps_per_epoch=planned.loader.steps_per_epoch,
            ),
        )

    def _say(self, line: str) -> None:
        if self.reporter:
            self.reporter.say(line)

    def _counted(self) -> dict[str, int]:
        return {
            "times_gone_back": self.rollback.times,
            "skipped_in_a_row": self._meters.in_a_row(),
            "steps_per_epoch": self.loader.steps_per_epoch,
        }

    def _position(self) -> Position:
        return Position(
            step=self.steps_done,
            epoch=self.steps_done / self.loader.steps_per_epoch,
            total_steps=self.schedule.total_steps,
        )

    def _at_end(self) -> bool:
        return self.steps_done >= self.schedule.total_steps

    def _note_end(self, status: str, *, why: str, exit_code: int) -> None:
        if self._held:
            self._held.state.end(status, why=why, exit_code=exit_code, step=self.steps_done)

    def _require_lock(self) -> None:
        """Write nothing into a folder that another process has taken over."""
        if self._held:
            self._held.lock.require()

    def _memory_explained(self) -> AbstractContextManager:
        return memory_explained(self.config, self.world, self.prediction)

    def _copying(self) -> AbstractContextManager:
        epoch, step = divmod(self.steps_done, self.loader.steps_per_epoch)
        return copying(self.config, self.world, self.assembly.plan.data, epoch=epoch, step=step)
