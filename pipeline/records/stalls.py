"""Reads that a disk kept waiting: named with the file and the seconds, now and then."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

_LONG = 5.0  # seconds of one read: a busy disk takes less
_PAUSE = 60.0  # seconds between two warnings

_log = logging.getLogger("facestream.pipeline")


class Stalls:
    """Those of one file; threads share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._count, self._longest, self._silent_until = 0, 0.0, 0.0

    def begin(self) -> float:
        """Call it before a read, and `end` with what it returns after."""
        return time.monotonic()

    def end(self, begun: float, length: int) -> None:
        """Warn where a read of `length` bytes took long, with those since the last warning."""
        now = time.monotonic()
        if now - begun < _LONG:
            return
        with self._lock:
            self._count, self._longest = self._count + 1, max(self._longest, now - begun)
            if now < self._silent_until:
                return
            count, longest = self._count, self._longest
            self._count, self._longest, self._silent_until = 0, 0.0, now + _PAUSE
        _log.warning(
            "%s: its disk stalls: reading %d bytes took %.0f s%s. A copy on a local disk "
            "can be read instead: docs/data.md",
            self._path,
            length,
            now - begun,
            f", {count} reads since the last warning up to {longest:.0f} s" if count > 1 else "",
        )
