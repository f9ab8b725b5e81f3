"""What comes before a run's first step: its plan, its folder, the state that it begins at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.assembly import Assembly, Plan, assemble, plan
from training.config import Config
from training.distributed import World, together
from training.faults.stops import Stops
from training.faults.watchdog import Watchdog
from training.planning.machine import available_memory
from training.planning.out_of_memory import memory_explained
from training.saving import checkpoint, resume
from training.saving.disk import Disk
from training.saving.lock import Lock, require_free
from training.saving.run_state import RunState
from training.scored_sets import ScoredSet
from training.step.precision import Precision
from training.weights.identities import Identities, write_identities
from training.weights.warm_start import foresee_warm_start, open_init_from, warm_start


@dataclass(frozen=True)
class Held:
    """run.output while this process holds it; the main rank's.

    Attributes:
        disk: what the disk of its checkpoints can do.
        state: what state.json says.
    """

    lock: Lock
    disk: Disk
    state: RunState

    def part(self, status: str, *, why: str, exit_code: int) -> None:
        """What a run leaves behind that a thread is about to end."""
        self.state.end(status, why=why, exit_code=exit_code)
        self.lock.release()


@dataclass(frozen=True)
class Start:
    """A run that may take its first step.

    Attributes:
        held: None on ranks but the main one.
        checkpoint: that it resumes from, after `steps_done` steps; None and 0 at the start.
        taken: what came from run.init_from, in lines for the log.
        changed: settings that are others than the checkpoint's, likewise.
    """

    assembly: Assembly
    held: Held | None
    checkpoint: Path | None
    steps_done: int
    taken: Sequence[str]
    changed: Sequence[str]


def start(
    config: Config,
    world: World,
    precision: Precision,
    *,
    sets: Sequence[ScoredSet],
    stops: Stops,
    watchdog: Watchdog,
) -> Start:
    """Check, build, claim and resume a run; call it on every rank.

    Whoever ends the process, `stops` or `watchdog`, says so in its folder from then on.

    Raises UserError, a subclass of it, for whatever cannot be run.
    """
    output = Path(config.run.output)
    together(lambda: world.is_main and require_free(output))
    saved = open_init_from(config) if resume.starts_fresh(config) else None
    if saved:
        foresee_warm_start(config, saved)
    planned = plan(config, world, precision, sets=sets)
    available = available_memory(world.device, local_world_size=world.local_world_size)
    assembly = assemble(planned)
    taken: list[str] = []
    if saved:
        with memory_explained(config, world, planned.prediction):
            taken = warm_start(
                config, world, saved, step=assembly.step, data=planned.data, precision=precision
            )
    # Only now: what cannot be built leaves no folder behind.
    held = together(lambda: _claim(planned, available) if world.is_main else None)
    if held:
        stops.on_quit = watchdog.on_hang = held.part
    try:
        path, steps_done, changed = _resume(assembly)
    except Exception as error:
        if held:
            if isinstance(error, resume.NoneWholeError):
                held.state.begin(0, None)  # a run that was finished no longer is
            held.state.fail(error)
        raise
    if held:
        held.state.begin(steps_done, path)
    return Start(assembly, held, path, steps_done, taken, changed)


def _claim(planned: Plan, available: int) -> Held:
    """Make run.output this run's, and write down who its classes are."""
    config, output = planned.config, Path(planned.config.run.output)
    lock, disk = resume.open_output(output)
    resume.claim(output, config, facts=planned.facts)
    identities = Identities.of(
        planned.data.records,
        num_classes=planned.num_classes,
        identity_map=config.data.identity_map,
    )
    write_identities(output, identities)
    state = RunState(
        output,
        steps_per_epoch=planned.loader.steps_per_epoch,
        total_steps=planned.schedule.total_steps,
        memory_predicted=planned.prediction.total,
        memory_available=available,
        lock=lock,
    )
    return Held(lock, disk, state)


def _resume(assembly: Assembly) -> tuple[Path | None, int, list[str]]:
    """Load the newest whole checkpoint, if there is one; what was loaded, its step, and how its
    settings differ.
    """
    planned = assembly.plan
    config, output = planned.config, Path(planned.config.run.output)
    path = resume.choose_checkpoint(output, config, facts=planned.facts)
    if path is None:
        return None, 0, []
    changed = resume.require_settings(path, output, config)
    done = checkpoint.load(path, train_step=assembly.step)
    resume.require_steps(path, output, done=done, total=planned.schedule.total_steps)
    return path, done, changed
