"""How a run went: its lines of metrics, in the few figures that tell health from illness."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.saving.files import main_figure

_PARTS = 8  # what a run is now is the mean of the last of so many parts of its readings
LAST_EPOCH = 0.1  # how much of an epoch a value at a moment is the mean of
_NEAR, _NEAR_SCORE = 0.25, 0.4  # epochs within which a reading or score stands for a moment


@dataclass(frozen=True)
class Course:
    """A run's metrics so far; a value that is not there is left out.

    Attributes:
        epoch, step: of the last line; 0 before the first.
        readings: lines of training, as training/reporting/meters.py names their values; None where
            all steps were skipped.
        scores: by set, (epoch, main figure's name, its value) of each verification.
    """

    epoch: float = 0.0
    step: int = 0
    readings: Sequence[Mapping[str, Any]] = ()
    scores: Mapping[str, Sequence[tuple[float, str, float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Course:
        """Of the lines of a metrics.jsonl, in order."""
        readings: list[Mapping[str, Any]] = []
        scores: dict[str, list[tuple[float, str, float]]] = {}
        epoch, step = 0.0, 0
        for line in lines:
            epoch, step = line["epoch"], line["step"]
            if "loss" in line:
                readings.append(line)
            for name, found in line.get("verification", {}).items():
                scores.setdefault(name, []).append((epoch, *main_figure(found)))
        return cls(epoch, step, readings, scores)

    def values(self, name: str) -> list[float]:
        """Of a reading's value, those that are there."""
        return [line[name] for line in self.readings if line.get(name) is not None]

    def now(self, name: str) -> float | None:
        """Its mean over the last eighth of the readings that have it, or over the last one."""
        values = self.values(name)
        return statistics.mean(values[-max(1, len(values) // _PARTS) :]) if values else None

    def loss_at(self, epoch: float) -> float | None:
        """The mean loss of the tenth of an epoch before a moment, or the reading nearest to it;
        None where there is none within a quarter of an epoch."""
        known = [line for line in self.readings if line.get("loss") is not None]
        before = [line["loss"] for line in known if 0 <= epoch - line["epoch"] <= LAST_EPOCH]
        if before:
            return statistics.mean(before)
        near = min(known, key=lambda line: abs(line["epoch"] - epoch), default=None)
        return near["loss"] if near and abs(near["epoch"] - epoch) <= _NEAR else None

    def score_at(self, name: str, epoch: float) -> float | None:
        """A set's main figure as it was found nearest to a moment, or None."""
        near = min(self.scores.get(name, ()), key=lambda found: abs(found[0] - epoch), default=None)
        return near[2] if near and abs(near[0] - epoch) <= _NEAR_SCORE else None
