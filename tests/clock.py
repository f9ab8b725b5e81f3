"""Time in tests: a clock that a test sets, and waits for what happens instead of for a while.

Machines differ threefold, and a busy one has pauses of seconds: no test asserts a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT = 300.0  # seconds: over ten times what any wait takes on one core; it ends what hangs


class Clock:
    """Stands in for the module `time`; its seconds pass when a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = time = perf_counter


def wait_until(happened: Callable[[], T], seen: Callable[[], object] = lambda: "nothing") -> T:
    """What `happened` returns, as soon as it is true; AssertionError with what was `seen`."""
    deadline = time.monotonic() + LIMIT
    while not (result := happened()):
        assert time.monotonic() < deadline, f"waited for {LIMIT:g} seconds, seen: {seen()}"
        time.sleep(0.005)
    return result
