"""What is about to run, in lines: everything that was derived from the settings."""

from __future__ import annotations

from collections.abc import Sequence

from training.assembly import Assembly
from training.data import shuffle_report
from training.saving.run_state import describe_silent_end
from training.scored_sets import ScoredSet
from training.start import Start

_CENTERS = {
    "host": "in the host's memory; those of a step are fetched",
    "disk": "on the disk, in a scratch file that ends with the run; those of a step are fetched",
}


def introduce(run: Assembly) -> list[str]:
    """Lines for the log, each with what it is about in front; the memory has its own."""
    plan, head, loader = run.plan, run.step.head, run.plan.loader
    dropped = f", {loader.dropped} records left over" if loader.dropped else ""
    mixed = str(plan.precision.compute_dtype).removeprefix("torch.")
    lines = [
        f"ranks      {plan.world.world_size} on {plan.world.device.type}",
        f"precision  {mixed}, because {plan.precision.reason}",
        *(f"data       {line}" for line in plan.data.records.summary_lines()),
        *([f"stage      {plan.staged}"] if plan.staged else []),
        *([f"columns    {plan.data.columns}"] if plan.data.columns else []),
        f"epoch      {loader.steps_per_epoch} steps{dropped}",
        f"order      {plan.config.data.order}: {shuffle_report(plan.config, plan.data)}",
        f"decoding   {plan.decoding}",
        f"model      {plan.config.model.name}, {run.about_backbone}",
        f"head       {head.margin}, {head.num_classes} classes, {head.sampling}; "
        f"{head.backend.name}, because {head.backend.reason}",
        *([f"centers    {_CENTERS[head.place]}"] if head.place in _CENTERS else []),
        f"rate       {plan.schedule}",
    ]
    if run.step.distillation:
        lines.append(f"teacher    {run.step.distillation}")
    return lines


def introduce_start(start: Start, sets: Sequence[ScoredSet]) -> list[str]:
    """The same, and where and how the run begins; the main rank's.

    Args:
        sets: that it is scored on.
    """
    assert start.held, "the main rank's"
    plan, resumed = start.assembly.plan, ""
    output = plan.config.run.output
    silent = describe_silent_end(start.held.state.before)
    if start.checkpoint:
        resumed = f", resumed from {start.checkpoint.name}"
    lines = [
        *introduce(start.assembly),
        *(f"scored     {one}" for one in sets),
        f"memory     {plan.prediction}",
        *([f"before     the run {silent}"] if silent else []),
        *(f"start      {line}" for line in start.taken),
        *(f"changed    {line}" for line in start.changed),
        f"output     {output}{resumed}",
        *(f"disk       {line}" for line in start.held.disk.lacks()),
        f"log        {output}/run.log, with the settings left at their defaults, too",
    ]
    if start.steps_done >= plan.schedule.total_steps:
        lines.append(f"finished, nothing to do: step {start.steps_done} was the last")
    return lines
