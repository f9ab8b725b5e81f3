"""What a source holds that is not packed: counted by reason, reported at the end."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Passed(NamedTuple):
    """One thing that is not packed."""

    reason: str
    place: str


class PassedOver:
    """Counts them, and remembers the first place of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, passed: Passed) -> None:
        self.counts[passed.reason] += 1
        self._first.setdefault(passed.reason, passed.place)

    def lines(self) -> list[str]:
        """One for each reason, the most frequent first."""
        return [
            f"{reason}: {count}, first {self._first[reason]}"
            for reason, count in self.counts.most_common()
        ]
