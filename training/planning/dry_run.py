"""A run in small before the long one: does it fit, and does the loader keep up?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from facestream import USER_ERROR_EXIT_CODE
from pipeline.dali_loader import Batch
from training.assembly import (
    Assembly,
    Plan,
    assemble,
    plan,
    stream_batches,
)
from training.config import Config
from training.data import columns_of_head
from training.distributed import World, of_all_ranks, together
from training.planning.memory import LOADED_BEYOND_STEPS, Prediction
from training.planning.out_of_memory import (
    does_not_fit,
    least_available,
    memory_explained,
)
from training.reporting.doctor import diagnose
from training.reporting.forecast import WARM_UP, duration, warm_up_steps
from training.reporting.introduction import introduce
from training.reporting.meters import pace, peak_memory
from training.reporting.stopwatch import Stopwatch
from training.saving.files import newest, step_of
from training.saving.resume import foresee, starts_fresh
from training.saving.room import Room, require_room
from training.scored_sets import ScoredSet
from training.step.precision import Precision
from training.weights.warm_start import foresee_warm_start, open_init_from

STEPS = 20  # on synthetic images, and again on real ones; those to warm up are not counted
_CLEAR_PEAK = Path("/proc/self/clear_refs")  # Linux: a 5 sets a process's peak to what it has now

Reading = dict[str, float]  # named as in training.reporting.meters


class _Readings(NamedTuple):
    synthetic: Reading
    real: Reading
    findings: dict[str, str]  # the doctor's, about the real ones
    peak: int  # bytes that a rank had of the device, on a CPU all of the process
    steps: int  # of the whole run
    room: Room  # on run.output's disk; the main rank's


def dry_run(
    config: Config, world: World, precision: Precision, *, sets: Sequence[ScoredSet] = ()
) -> int:
    """Check a run, predict its memory and take a few steps of it; call it on every rank.

    The main rank prints tables and a verdict. Nothing is written, so run.output is not claimed; of
    the checkpoint that the run would begin at the settings are compared, not the weights; and
    nothing is verified, on whatever `sets` the run will be.

    Returns 0, or USER_ERROR_EXIT_CODE where it is predicted not to fit: then no step is taken.

    Raises UserError for whatever a run would refuse, and where memory runs out all the same.
    """
    console = Console(quiet=not world.is_main, highlight=False, soft_wrap=True)
    saved = open_init_from(config) if starts_fresh(config) else None
    taken = foresee_warm_start(config, saved) if saved else []
    planned = plan(config, world, precision, sets=sets)
    total_steps = planned.schedule.total_steps
    where = foresee(config, facts=planned.facts, total_steps=total_steps)
    prediction, available = planned.prediction, least_available(world)
    console.print(memory_table(prediction, available))
    if max(of_all_ranks(prediction.total)) > available:
        console.print(does_not_fit(config, prediction, available=available))
        return USER_ERROR_EXIT_CODE
    with memory_explained(config, world, prediction):
        about = [
            *(f"scored     {one}" for one in sets),
            f"output     {config.run.output}, which a dry run leaves as it is",
            *(f"start      {one}" for one in taken),
            f"begins     {where}",
        ]
        readings = _rehearse(planned, about, console)
    console.print(_speed_table(readings))
    console.print(_time(config, readings))
    later = prediction.checkpoint + prediction.verification
    unseen = 0
    if world.device.type == "cpu":
        later += LOADED_BEYOND_STEPS
    else:  # DALI's memory is its own: torch does not see what it takes of an accelerator
        unseen = prediction.loader
    verdict = "fits" if readings.peak + later <= available else "barely fits"
    console.print(
        f"{verdict}: at its peak {_mb(readings.peak)} of {_mb(available)} MB a rank; "
        f"{_mb(prediction.total - later - unseen)} predicted for steps, and {_mb(later)} more for "
        "checkpoints and verification"
    )
    console.print(f"disk: {readings.room}")
    for line in _bottlenecks(readings):
        console.print(line, markup=False)
    return 0


def _rehearse(planned: Plan, about: Sequence[str], console: Console) -> _Readings:
    """Steps on synthetic and on real batches, built as for the run."""
    config, world = planned.config, planned.world
    _forget_peak(world.device)
    run = assemble(planned)
    for line in (*config.changes(), *introduce(run), *about):
        console.print(line, markup=False)
    try:
        noise = _synthetic_batches(planned)
        synthetic = _measure(
            run, noise, warm_up=warm_up_steps(config), name="synthetic", console=console
        )
        with closing(stream_batches(planned.loader)) as stream:
            real = _measure(
                run, stream, warm_up=WARM_UP, name="real", console=console, announced=True
            )
    finally:
        run.forget_graphs()
    findings = diagnose(real, run.settings())
    peak = max(of_all_ranks(peak_memory(world.device)))
    room = together(lambda: _ask_for_room(run) if world.is_main else None)
    steps = planned.schedule.total_steps
    return _Readings(synthetic, real, findings, peak, steps, room)


def _ask_for_room(run: Assembly) -> Room:
    """For the checkpoints that the run itself would write."""
    config = run.plan.config
    last = newest(Path(config.run.output))
    return require_room(
        config,
        run.step,
        steps_done=step_of(last) if last else 0,
        steps_per_epoch=run.plan.loader.steps_per_epoch,
    )


def _measure(
    run: Assembly,
    batches: Iterator[Batch],
    *,
    warm_up: int,
    name: str,
    console: Console,
    announced: bool = False,
) -> Reading:
    """The pace of steps on these batches; `console` shows how far it is.

    announced: whether they are the loader's first, which the head can have ahead.
    """
    # Batches come in rounds of the loader's threads: fewer steps might see none of its waits.
    counted = max(STEPS - WARM_UP, run.plan.loader.threads)
    stopwatch = Stopwatch(run.plan.world.device)
    for step in _shown(console, warm_up + counted, f"timing steps on {name} batches"):
        if step == warm_up:
            stopwatch.laps()  # forgets what was before
        batch = next(batches)
        stopwatch.lap("data")
        if announced:
            run.announce(step)
        run.train(0, batch, stopwatch.lap)  # the first again and again: a run may be shorter
    global_batch = run.plan.config.data.global_batch
    return pace(stopwatch.laps(), steps=counted, images=global_batch, steps_left=0)


def _shown(console: Console, count: int, what: str) -> Iterable[int]:
    """Numbers below `count`, as they are taken; a line of it where nobody watches a bar."""
    if console.is_terminal:
        return track(range(count), description=what, console=console, transient=True)
    console.print(f"{what}: {count}")
    return range(count)


def _synthetic_batches(planned: Plan) -> Iterator[Batch]:
    """Noise that is on the device already, without end."""
    config, world = planned.config, planned.world
    batch, size = config.data.global_batch // world.world_size, config.data.image_size
    images = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8, device=world.device)
    labels = torch.randint(planned.num_classes, (batch,), device=world.device)
    names = columns_of_head(config)
    columns = torch.ones(batch, len(names), device=world.device) if names else None
    return itertools.repeat(Batch(images.permute(0, 3, 1, 2), labels, np.arange(batch), columns))


def memory_table(prediction: Prediction, available: int) -> Table:
    """By part, in MB a rank."""
    table = Table("memory, predicted", Column("MB a rank", justify="right"))
    for name, size in prediction.parts.items():
        table.add_row(name, _mb(size))
    table.add_section()
    table.add_row("total", _mb(prediction.total))
    table.add_row("available", _mb(available))
    return table


def _speed_table(readings: _Readings) -> Table:
    table = Table(
        "batches", Column("images/s", justify="right"), Column("waiting for them", justify="right")
    )
    for name, reading in (("synthetic", readings.synthetic), ("real", readings.real)):
        table.add_row(
            name, f"{reading['images_per_s']:,.0f}", f"{reading['data_wait_fraction']:.1%}"
        )
    return table


def _time(config: Config, readings: _Readings) -> str:
    """How long the whole run takes at the pace of real batches."""
    speed = readings.real["images_per_s"]
    seconds = readings.steps * config.data.global_batch / speed
    sessions, limit = "", config.run.max_hours * 3600
    if 0 < limit < seconds:
        count = math.ceil(seconds / limit)
        sessions = f", in {count} sessions of run.max_hours={config.run.max_hours:g}"
    return (
        f"time: about {duration(seconds)} for {readings.steps:,} steps at {speed:,.0f} images/s"
        f"{sessions}, verification and checkpoints aside"
    )


def _bottlenecks(readings: _Readings) -> list[str]:
    """Whether the loader keeps up, and what the doctor finds."""
    if "data" in readings.findings:
        factor = readings.synthetic["images_per_s"] / readings.real["images_per_s"]
        verdict = f"the loader is the bottleneck: without it steps are {factor:.1f} times as fast"
    else:
        verdict = "the loader keeps up"
    return [verdict, *readings.findings.values()]


def _forget_peak(device: torch.device) -> None:
    """Let `training.reporting.meters.peak_memory` start again from what is in use."""
    if device.type != "cpu":
        torch.get_device_module(device).reset_peak_memory_stats(device)
    elif _CLEAR_PEAK.exists():
        _CLEAR_PEAK.write_text("5")


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"
