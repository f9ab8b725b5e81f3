"""The run: what is checked before the first step, the steps, and what happens between epochs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

from facestream import USER_ERROR_EXIT_CODE
from pipeline.dali_loader import Batch
from pipeline.named_path import mendable
from training.assembly import Plan, assemble, plan, stream_batches
from training.config import Config
from training.distributed import World, from_main, together
from training.faults.agreement import Reason
from training.faults.rollback import Rollback, gather_bad_steps
from training.faults.stops import NO_ANSWER_EXIT_CODE, Stopped, Stops
from training.faults.watchdog import Watchdog
from training.health.facts import Facts
from training.planning.memory import available_memory
from training.planning.out_of_memory import memory_explained
from training.reporting.doctor import Doctor
from training.reporting.forecast import Forecast
from training.reporting.introduction import introduce
from training.reporting.journal import Position
from training.reporting.meters import Meters, pace
from training.reporting.reporter import Reporter
from training.reporting.stopwatch import Laps, Stopwatch
from training.saving import checkpoint, resume
from training.saving.files import (
    CheckpointError,
    Scores,
    counters,
    read_about,
    remove_beyond,
    step_of,
)
from training.saving.lock import Lock, require_free
from training.saving.room import Room, require_room
from training.saving.run_state import RunState, describe_silent_end
from training.scored_sets import ScoredSet, compared
from training.staging import copying
from training.step.backbone import average_statistics
from training.step.precision import Precision
from training.step.train_step import Lap, StepResult
from training.verification import Verification
from training.weights.identities import Identities, write_identities
from training.weights.warm_start import warm_start


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
        self.config, self.world = config, world
        self.precision, self._sets = precision, sets
        if stops is None:
            stops = Stops()
            stops.follow(config.run, world)
        self._stops, self._watchdog = stops, Watchdog(config.run, world)
        self.output = Path(config.run.output)
        self._lock: Lock | None = None
        self._state: RunState | None = None
        together(lambda: world.is_main and require_free(self.output))
        planned = plan(config, world, precision, sets=sets)
        self.loader, self.schedule = planned.loader, planned.schedule
        self.prediction = planned.prediction
        self._available = available_memory(world.device, local_world_size=world.local_world_size)
        self.assembly = assemble(planned)
        self.step = self.assembly.step
        self.steps_done, self._saved_at, self._averaged_at = 0, -1, -1
        self._taken, self._changed = [], []
        self.last_checkpoint: Path | None = None
        begun = together(lambda: checkpoint.checkpoints(self.output))
        fresh = not begun and config.run.resume in ("auto", "never")
        if config.run.init_from and fresh:
            with self._memory_explained():
                self._taken = warm_start(
                    config, world, step=self.step, data=planned.data, precision=precision
                )
        # Only now: what cannot be built leaves no folder behind.
        together(lambda: world.is_main and self._claim(planned))
        self._resume(planned.facts)
        self.rollback = Rollback(config.run.max_nonfinite, self._times_gone_back())
        self._saver = checkpoint.Saver(
            self.output,
            config=config,
            train_step=self.step,
            facts=planned.facts,
            lock=self._lock,
            compared_by=compared(sets),
        )
        if self._state:
            self._state.begin(self.steps_done, self.last_checkpoint)
            self._saver.on_saved = self._state.saved
        self._meters = Meters(world.device)
        self.reporter = None
        if world.is_main:
            scaled = self.step.scaler.is_enabled()
            self.reporter = Reporter(
                self.output,
                at=self._position(),
                scales_losses=scaled,
                also=config.log.also,
                pictures=config.log.pictures,
                facts=Facts.of(
                    config,
                    classes=planned.num_classes,
                    steps_per_epoch=self.loader.steps_per_epoch,
                ),
            )
        self._doctor = Doctor(self.assembly.settings())
        per_epoch = self.loader.steps_per_epoch
        self._forecast = Forecast(config, sets=sets, steps_per_epoch=per_epoch, device=world.device)
        self._verification = Verification(self.assembly, sets, self._forecast)
        self._introduce()

    def _memory_explained(self) -> AbstractContextManager:
        return memory_explained(self.config, self.world, self.prediction)

    def _claim(self, planned: Plan) -> None:
        """Make run.output this run's, and write down who its classes are; the main rank's."""
        self._lock, self._disk = resume.open_output(self.output)
        resume.claim(self.output, self.config, facts=planned.facts)
        identities = Identities.of(
            planned.data.records,
            num_classes=planned.num_classes,
            identity_map=self.config.data.identity_map,
        )
        write_identities(self.output, identities)
        self._state = RunState(
            self.output,
            steps_per_epoch=self.loader.steps_per_epoch,
            total_steps=self.schedule.total_steps,
            memory_predicted=self.prediction.total,
            memory_available=self._available,
            lock=self._lock,
        )
        self._stops.on_quit = self._watchdog.on_hang = self._part

    def _times_gone_back(self) -> int:
        """How often the run had gone back when its checkpoint was written."""
        if self.last_checkpoint is None:
            return 0
        return counters(self.last_checkpoint).get("times_gone_back", 0)

    def _take_up(self, path: Path) -> None:
        """Resume from a checkpoint."""
        self.last_checkpoint = path
        self.steps_done = checkpoint.load(path, train_step=self.step)
        self._saved_at = self._averaged_at = self.steps_done

    def _resume(self, facts: dict[str, Any]) -> None:
        """Resume from the newest whole checkpoint, if there is one."""
        try:
            path = resume.choose_checkpoint(self.output, self.config, facts=facts)
            if path:
                self._changed = resume.require_settings(path, self.output, self.config)
                self._take_up(path)
                total = self.schedule.total_steps
                resume.require_steps(path, self.output, done=self.steps_done, total=total)
        except Exception as error:
            if self._state:
                if isinstance(error, resume.NoneWholeError):
                    self._state.begin(0, None)  # a run that was finished no longer is
                self._state.end("failed", why=_describe(error), exit_code=_exit_code(error))
            raise

    def _part(self, status: str, *, why: str, exit_code: int) -> None:
        """What a run leaves behind that a thread is about to end; the main rank's."""
        self._state.end(status, why=why, exit_code=exit_code)
        self._lock.release()

    def _introduce(self) -> None:
        """Say what is about to run, with everything that was derived."""
        if self.reporter is None:
            return
        silent = describe_silent_end(self._state.before)
        resumed = f", resumed from {self.last_checkpoint.name}" if self.last_checkpoint else ""
        lines = [
            *introduce(self.assembly),
            *(f"scored     {one}" for one in self._sets),
            f"memory     {self.prediction}",
            *([f"before     the run {silent}"] if silent else []),
            *(f"start      {line}" for line in self._taken),
            *(f"changed    {line}" for line in self._changed),
            f"output     {self.output}{resumed}",
            f"disk       {self._disk}",
            f"log        {self.output / 'run.log'}, with the settings left at their defaults, too",
        ]
        changed = self.config.changes()
        for line in self.config.lines():
            (self.reporter.say if line in changed else self.reporter.note)(line)
        for line in lines:
            self.reporter.say(line)
        if self._at_end():
            self.reporter.say(f"finished, nothing to do: step {self.steps_done} was the last")
        self.reporter.settings(self.config.settings())

    def _position(self) -> Position:
        return Position(
            step=self.steps_done,
            epoch=self.steps_done / self.loader.steps_per_epoch,
            total_steps=self.schedule.total_steps,
        )

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
                    while self.steps_done < self.schedule.total_steps:
                        at = divmod(self.steps_done, self.loader.steps_per_epoch)
                        with closing(stream_batches(self.loader, *at)) as stream:
                            scores = self._run(stream, scores)
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
            why = loss or _describe(error)
            if self.reporter:
                self.reporter.note(why)
            code = NO_ANSWER_EXIT_CODE if loss else _exit_code(error)
            self._note_end("failed", why=why, exit_code=code)
            raise
        finally:
            self.close()

    def _copying(self) -> AbstractContextManager:
        epoch, step = divmod(self.steps_done, self.loader.steps_per_epoch)
        return copying(self.config, self.world, self.assembly.plan.data, epoch=epoch, step=step)

    def _note_end(self, status: str, *, why: str, exit_code: int) -> None:
        if self._state:
            self._state.end(status, why=why, exit_code=exit_code, step=self.steps_done)

    def require_room(self) -> None:
        """Make sure that the checkpoints to come fit on run.output's disk."""
        done, per_epoch = self.steps_done, self.loader.steps_per_epoch

        def ask() -> Room:
            return require_room(self.config, self.step, steps_done=done, steps_per_epoch=per_epoch)

        room = together(lambda: self.world.is_main and ask())
        if self.reporter:
            self.reporter.say(f"room       {room}")

    def close(self) -> None:
        """Let go of recorded graphs, before ranks part, and of the files that are written to."""
        self.assembly.forget_graphs()
        self._saver.close()
        if self.reporter:
            self.reporter.close()
        if self._lock:
            self._lock.release()

    def train_on(self, batch: Batch, lap: Lap) -> StepResult:
        """The next step, on this rank's batch."""
        factor = self.rollback.factor
        self.assembly.announce(self.steps_done)
        result = self.assembly.train(self.steps_done, batch, lap, rate_factor=factor)
        self.steps_done += 1
        return result

    def _run(self, stream: Iterator[Batch], scores: Scores) -> Scores:
        """Train to the last step; or until the run goes back, which wants another stream."""
        config, watchdog = self.config, self._watchdog
        meters = self._meters = Meters(self.world.device)
        stopwatch = Stopwatch(self.world.device)
        logged = first = self.steps_done
        while self.steps_done < self.schedule.total_steps:
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
            last = self.steps_done == self.schedule.total_steps
            if self.reporter:
                self.reporter.advance(self._position())
                if line := self._forecast.step(self.steps_done):
                    self.reporter.say(f"time       {line}")
            if (self.steps_done - first) % config.log.every == 0 or last:
                watchdog.beat(self.steps_done, "reading meters")
                means = meters.read()
                self._log(means, stopwatch.laps(), self.steps_done - logged)
                logged = self.steps_done
                if self.rollback.due(
                    skipped_in_a_row=means["skipped_in_a_row"], loss_scale=means["loss_scale"]
                ):
                    self._go_back(int(means["skipped_in_a_row"]), result, batch)
                    return scores
            scores = self._after_step(scores, last, stopwatch)
        return scores

    def _after_step(self, scores: Scores, last: bool, stopwatch: Stopwatch) -> Scores:
        """Save and verify where it is time to; returns the last scores."""
        config = self.config
        epoch, into_epoch = divmod(self.steps_done, self.loader.steps_per_epoch)
        if into_epoch == 0:
            # Saved first: verifying may take long or fail, and must not cost the epoch.
            if epoch % config.run.save_every == 0 or last:
                self.save()
        elif config.run.save_steps and into_epoch % config.run.save_steps == 0:
            self.save()
        due = self._verification.due(self.steps_done)
        if due:
            scores = self.verify(due)
        if due or into_epoch == 0:
            stopwatch.skip()
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

    def _stop(self, reason: Reason) -> None:
        """Save and raise Stopped, on all ranks after the same step."""
        self._require_saved()
        self._note_end("stopped", why=str(reason), exit_code=reason.exit_code)
        raise Stopped(reason)

    def _require_saved(self) -> None:
        """Wait until this moment is saved; one more try where that fails, then CheckpointError."""
        self.wait_for_checkpoint()
        for _ in range(2):
            if self._saved_at == self.steps_done:
                return
            self._begin_saving()
            self.wait_for_checkpoint()
        if self._saved_at != self.steps_done:
            raise CheckpointError(
                f"step {self.steps_done} is not saved, the newest checkpoint is "
                f"{self.last_checkpoint}: {self._saver.fault}"
            )

    def _go_back(self, skipped: int, result: StepResult, batch: Batch) -> None:
        """Load the newest checkpoint from before `skipped` steps in a row; the rate is halved.

        Raises DivergedError, on every rank, where there is none or it has been tried enough.
        """
        with self._watchdog.paused("going back"):
            self.wait_for_checkpoint()
            path = self.rollback.choose(
                self.output,
                step=self.steps_done,
                skipped=skipped,
                seen=lambda: gather_bad_steps(result, batch, self.assembly.plan.data.records),
            )
            self._take_up(path)
            if self.world.is_main:  # the others have the same weights, of which nothing comes
                remove_beyond(self.output, self.steps_done)
            self.rollback.times += 1
            scaler = self.step.scaler
            if scaler.is_enabled():
                scaler.update(scaler.get_scale() * self.rollback.factor)
            if self.assembly.graphed:
                self.assembly.graphed.forget()
            if self._state:
                self._state.begin(self.steps_done, self.last_checkpoint)
            if self.reporter:
                self.reporter.go_back(self._position())
                self.reporter.say(
                    f"{skipped} steps in a row were not finite and changed nothing: back to step "
                    f"{self.steps_done}, learning rate × {self.rollback.factor:g}"
                )

    def _rate(self, step: int) -> float:
        """The learning rate of a step, lower where the run has gone back."""
        return self.schedule(step) * self.rollback.factor

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
        reading = means | {"lr": self._rate(self.steps_done - 1)} | measured
        self._require_lock()
        self.reporter.training(at, reading)
        for line in self._doctor(reading):
            self.reporter.say(line)

    def _require_lock(self) -> None:
        """Write nothing into a folder that another process has taken over."""
        if self._lock:
            self._lock.require()

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

    def _at_end(self) -> bool:
        return self.steps_done >= self.schedule.total_steps

    def save(self) -> None:
        """Begin to write a checkpoint of this moment, on all ranks together.

        One that fails costs a warning. Then the next is waited for and tried again, and where that
        fails, too, training on would be for nothing: raises CheckpointError.
        """
        self.wait_for_checkpoint()
        failed = self._saver.fault
        self._begin_saving()
        if failed:
            self._require_saved()

    def _begin_saving(self) -> None:
        self._average_statistics()
        with self._watchdog.paused("saving"):
            counted = {
                "times_gone_back": self.rollback.times,
                "skipped_in_a_row": self._meters.in_a_row(),
                "steps_per_epoch": self.loader.steps_per_epoch,
            }
            path = self._saver.save(self.steps_done, counters=counted)
        if self.reporter:
            self.reporter.say(f"saving {path}")

    def _average_statistics(self) -> None:
        """Once a step: what is verified has the very bits of what is saved."""
        if self._averaged_at != self.steps_done:
            average_statistics(self.step.backbone)
            self._averaged_at = self.steps_done

    def wait_for_checkpoint(self) -> None:
        """Wait until the last checkpoint is written; `last_checkpoint` is the newest that was."""
        with self._watchdog.paused("waiting for a checkpoint"):
            if path := self._saver.wait():
                self.last_checkpoint, self._saved_at = path, step_of(path)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _exit_code(error: Exception) -> int:
    """What the command will return for an error that ends the run."""
    return USER_ERROR_EXIT_CODE if mendable(error) else 1
