"""How far the first look through a training set is, where that takes long."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.records.scan import Progress
from training.reporting.lines import open_console, show

_EVERY = 10.0  # seconds


def scan_progress(path: str, *, clock: Callable[[], float] = time.monotonic) -> Progress:
    """What open_records tells its progress to: a line every ten seconds, none where it takes less.

    Args:
        path: the set, as it is configured.
        clock: tells seconds.
    """
    begin = last = clock()

    def show_progress(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if now - last < _EVERY:
            return
        last = now
        left = (now - begin) * (total - done) / max(done, 1)
        text = f"data       {path} is looked through for its index: {done / total:.0%}, "
        show(open_console(), text + f"some {left:.0f} s are left")

    return show_progress
