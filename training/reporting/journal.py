"""metrics.jsonl, a run's journal: a line for each reading and verification, as JSON.

Each has the integer `step`, the `epoch`, which has a fraction, and either the values of a reading,
named as in training/reporting/meters.py, or `verification`: {set: {score: value}}, of which the
first is the set's main figure. A run that goes back or resumes drops the lines of the steps that
come again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from facestream import UserError
from pipeline.named_path import MALFORMED
from pipeline.whole_file import write_whole
from training.reporting.outlet import AppendedFile, Outlet
from training.saving.files import main_figure

Curve = dict[int, float]  # step → value
Scores = dict[str, dict[str, float]]  # test set → score → value, its main one first


@dataclass(frozen=True)
class Position:
    """How far a run is."""

    step: int
    epoch: float
    total_steps: int


class Journal:
    """A run's metrics.jsonl, read and written; a disk that fails it costs a warning.

    Lines of steps after `step`, where the run begins, are dropped.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        self._file = AppendedFile(self.path)
        self._reading = Outlet(f"reading {self.path}")
        self.forget_after(step)

    def write(self, at: Position, values: Mapping[str, Any]) -> None:
        """Add a line."""
        line = {"step": at.step, "epoch": at.epoch, **values}
        # JSON has no NaN: the mean over no step is null.
        known = {key: None if value != value else value for key, value in line.items()}
        self._file.append(f"{json.dumps(known)}\n".encode())

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps; of all where the step is 0."""
        self._file.rewrite(lambda: forget_after(self.path, step))

    def lines(self) -> list[dict[str, Any]]:
        """As they were written; none where the file cannot be read, which its writing tells."""
        try:
            return read_lines(self.path)
        except OSError:
            return []

    def verifications(self) -> list[tuple[int, Scores]]:
        """Steps and their scores, as they were written; none where the file cannot be read."""
        lines: list[dict[str, Any]] = []
        self._reading.attempt(lambda: lines.extend(read_lines(self.path)))
        return [(line["step"], line["verification"]) for line in lines if "verification" in line]


def forget_after(path: Path, step: int) -> None:
    """Drop what an interrupted run wrote past the checkpoint it resumes from, or wrote by half."""
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if line["step"] <= step] if step else []
    content = "".join(f"{json.dumps(line)}\n" for line in kept)
    write_whole(path, content, aside=path.with_suffix(".unfinished"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of metrics, steps ascending; OSError where it cannot be read.

    Lines of steps that come again later are not among them: the run went back.
    """
    lines: list[dict[str, Any]] = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
            if not _is_whole(line):
                continue
        except MALFORMED:
            continue  # written by half
        # A step is read before it is verified, by one set after another.
        first = line["step"] + ("verification" in line)
        while lines and lines[-1]["step"] >= first:
            lines.pop()
        lines.append(line)
    return lines


def _is_whole(line: dict[str, Any]) -> bool:
    """Whether every value is what a run writes there; raises what MALFORMED has for some others."""
    sets = line.get("verification", {})
    values = [line[key] for key in line if key not in ("step", "verification")]
    scores = itertools.chain.from_iterable(found.values() for found in sets.values())
    return (
        type(line["step"]) is int
        and (line["epoch"] > 0) == (line["step"] > 0)
        and all(type(value) in (int, float, NoneType) for value in values)
        and all(type(score) in (int, float) for score in scores)
        and all(sets.values())
    )


def read_curves(path: Path) -> dict[str, dict[str, Curve]]:
    """The curves by panel ("loss", "verification", "lr", "images_per_s") and name, steps ascending.

    Raises UserError where the file is missing, empty or garbled, with the line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the metrics of a run, as JSON lines")
    curves: dict[str, dict[str, Curve]] = {
        panel: {} for panel in ("loss", "verification", "lr", "images_per_s")
    }
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            _take(json.loads(text), curves)
        except MALFORMED as error:
            raise UserError(
                f"{path}, line {number}: not a line of metrics ({type(error).__name__}: {error}). "
                f'Expected an object such as {{"step": 20, "loss": 9.1}}, found {text[:80]!r}. '
                "Remove the line if a run was killed while writing it"
            ) from error
    if not any(curves.values()):
        raise UserError(f"{path}: nothing to draw; the run has not logged a loss yet")
    return {
        panel: {name: dict(sorted(curve.items())) for name, curve in named.items()}
        for panel, named in curves.items()
    }


def _take(line: dict, curves: dict[str, dict[str, Curve]]) -> None:
    step = line["step"]
    if type(step) is not int:
        raise TypeError(f"the step is {step!r}, not an integer")
    for key in ("loss", "lr", "images_per_s"):
        if key in line:
            curves[key].setdefault(key, {})[step] = float(line[key])
    for name, result in line.get("verification", {}).items():
        curves["verification"].setdefault(name, {})[step] = float(main_figure(result)[1])
