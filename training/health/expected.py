"""What is to be expected of a recipe by epoch, from runs that are known, beside what a run shows.

expected.json has them: of each its recipe, where it is from, the settings that it is true of, and
points: an epoch, and the lowest and highest loss, if it is known, and main figures to expect there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from training.health.course import Course
from training.health.facts import Facts
from training.setting_value import as_given

_NEAR_MISS = 3  # settings in which a run may differ from the recipe that is named as the nearest

Span = tuple[float, float]


@dataclass(frozen=True)
class Expectation:
    """What a recipe's runs show.

    Attributes:
        recipe: of configs/, by name.
        source: where it is known from, and of how many runs.
        settings: "section.key" to its value, where a run has the same.
        classes, steps_per_epoch: of its set.
        losses: epoch to the lowest and highest loss to expect.
        scores: set to epoch to the lowest and highest main figure.
    """

    recipe: str
    source: str
    settings: Mapping[str, Any]
    classes: int
    steps_per_epoch: int
    losses: Mapping[float, Span]
    scores: Mapping[str, Mapping[float, Span]]

    def differences(self, facts: Facts) -> list[str]:
        """What of a run is not as this recipe has it."""
        known = {**self.settings, "classes": self.classes, "steps an epoch": self.steps_per_epoch}
        found = {
            **facts.settings,
            "classes": facts.classes,
            "steps an epoch": facts.steps_per_epoch,
        }
        found = json.loads(json.dumps(found))  # with lists for tuples, as `known` has them
        return [
            f"{name}={as_given(found.get(name))} instead of {as_given(value)}"
            for name, value in known.items()
            if found.get(name) != value
        ]


@dataclass(frozen=True)
class Comparison:
    """One value of a run beside the expected one.

    Attributes:
        what: "loss", or the name of a set.
        found: None where the run was not that far.
    """

    what: str
    epoch: float
    low: float
    high: float
    found: float | None

    @property
    def verdict(self) -> str:
        """ "as expected", "lower", "higher", or "unknown"."""
        if self.found is None:
            return "unknown"
        if self.found < self.low:
            return "lower"
        return "higher" if self.found > self.high else "as expected"


def expectation_of(facts: Facts) -> tuple[Expectation | None, str]:
    """What is to be expected of a run, and where that is known from; or None, and why."""
    all_known = ((one, one.differences(facts)) for one in known())
    nearest, differing = min(all_known, key=lambda pair: len(pair[1]))
    if not differing:
        return nearest, f"as configs/{nearest.recipe}.py: {nearest.source}"
    why = "no run with these settings is known, so nothing is expected of its figures"
    if len(differing) <= _NEAR_MISS:
        why += f"; nearest is configs/{nearest.recipe}.py, with {', '.join(differing)}"
    return None, why


def compare(course: Course, expected: Expectation) -> list[Comparison]:
    """A run's values beside the expected ones, of the sets that it is scored on."""
    return list(_compare(course, expected))


@cache
def known() -> tuple[Expectation, ...]:
    """All that is known."""
    listed = json.loads((files("training.health") / "expected.json").read_text(encoding="utf-8"))
    return tuple(
        Expectation(
            recipe=one["recipe"],
            source=one["source"],
            settings=one["settings"],
            classes=one["classes"],
            steps_per_epoch=one["steps_per_epoch"],
            losses={
                point["epoch"]: tuple(point["loss"]) for point in one["points"] if "loss" in point
            },
            scores={
                name: {
                    point["epoch"]: tuple(point["scores"][name])
                    for point in one["points"]
                    if name in point["scores"]
                }
                for name in one["sets"]
            },
        )
        for one in listed
    )


def _compare(course: Course, expected: Expectation) -> Iterator[Comparison]:
    for epoch, (low, high) in expected.losses.items():
        there = course.loss_at(epoch) if course.epoch >= epoch else None
        yield Comparison("loss", epoch, low, high, there)
    for name, points in expected.scores.items():
        if name in course.scores:
            for epoch, (low, high) in points.items():
                there = course.score_at(name, epoch) if course.epoch >= epoch else None
                if there is not None or course.epoch < epoch:  # else it was not scored there
                    yield Comparison(name, epoch, low, high, there)
