"""The course of a run from its folder, and what it is judged against."""

from __future__ import annotations

from pathlib import Path

from facestream import UserError
from training.health.course import Course
from training.health.facts import Facts
from training.reporting.journal import read_lines
from training.saving import files
from training.saving.reading import SavedCheckpoint


def read_run(run: Path) -> tuple[Course, Facts]:
    """Read metrics.jsonl, and the settings of the newest checkpoint.

    Raises UserError where the folder has no metrics of a step, or no checkpoint.
    """
    metrics = run / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"{run}: no metrics.jsonl, expected the folder of a run: its run.output")
    course = Course.of(read_lines(metrics))
    if not course.readings:
        raise UserError(f"{metrics}: no loss yet; wait for log.every steps of the run")
    checkpoint = files.newest(run)
    if checkpoint is None:
        raise UserError(
            f"{run} has no checkpoint yet, which says what its figures are judged against. "
            "Meanwhile the run itself says in run.log when something is wrong"
        )
    saved = SavedCheckpoint(checkpoint, "")
    config, facts = saved.config, saved.about.get("facts", {})
    classes = facts.get("number of classes") or config.head.num_classes
    if not classes:
        raise UserError(f"{checkpoint} does not say how many classes its head has: it is damaged")
    steps = round(course.step / course.epoch)
    return course, Facts.of(config, classes=classes, steps_per_epoch=steps)
