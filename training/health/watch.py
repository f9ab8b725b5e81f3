"""What a run says of its health while it goes on, and leaves behind of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from training.health.causes import diagnose, is_early
from training.health.course import Course
from training.health.expected import expectation_of
from training.health.facts import Facts
from training.health.verdict import summary

_GROWN = 1.1  # readings over those when it was looked at last: looking takes as long as all of them
_FIRST = 5  # readings


class Watch:
    """Looks at a run's metrics from time to time.

    Args:
        facts: what they are judged against.
        lines: gives all that the run has written into metrics.jsonl.
    """

    def __init__(self, facts: Facts, lines: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        self._facts, self._lines = facts, lines
        self._said: set[str] = set()
        self._readings, self._due = 0, float(_FIRST)

    def news(self) -> list[str]:
        """After each reading: a line for each cause that has come up since the run began."""
        self._readings += 1
        if self._readings < self._due:
            return []
        self._due = _GROWN * self._readings
        found = diagnose(Course.of(self._lines()), self._facts)
        new = [finding for finding in found if finding.cause not in self._said]
        self._said |= {finding.cause for finding in found}
        return summary(new, early=False) if new else []

    def conclusion(self) -> list[str]:
        """Of the run as a whole: what is wrong, or that nothing is seen; none before a reading."""
        course = Course.of(self._lines())
        if not course.readings:
            return []
        found = diagnose(course, self._facts)
        return summary(found, early=is_early(course, self._facts))

    def section(self) -> Element | None:
        """Of the run's report."""
        from training.health.section import section  # what only a report takes

        course = Course.of(self._lines())
        return section(course, self._facts) if course.readings else None

    def expected_losses(self) -> dict[int, dict[str, float]]:
        """By step, the lowest and highest loss to expect there, named for dashboards."""
        expected, _ = expectation_of(self._facts)
        losses = expected.losses if expected else {}
        return {
            round(epoch * self._facts.steps_per_epoch): {
                "loss/expected_low": low,
                "loss/expected_high": high,
            }
            for epoch, (low, high) in losses.items()
        }
