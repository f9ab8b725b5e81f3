"""Reads that a disk keeps waiting: named with the file and the seconds, now and then."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONG = 5.0  # seconds of one read: a busy disk takes less
_PAUSE = 60.0  # seconds between two warnings

_log = logging.getLogger("facestream.pipeline")
_everywhere: weakref.WeakSet[Stalls] = weakref.WeakSet()

# One for all, since it is rarely taken and never for long: files are opened and read by many
# threads. A fork waits for it, or its child could find it taken by a thread that it does not have.
_lock = threading.Lock()
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


class Stalls:
    """Those of one file, or of one folder's files; threads share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._under_way: dict[int, tuple[float, int]] = {}  # by thread: since when, bytes
        self._count, self._longest, self._silent_until = 0, 0.0, 0.0
        self._named: float | None = None  # the begin of the read that `look` named
        with _lock:
            _everywhere.add(self)

    def begin(self, length: int) -> None:
        """Call it before a read of `length` bytes, and `end` after, whatever came of it."""
        self._under_way[threading.get_ident()] = time.monotonic(), length

    def end(self) -> None:
        """Warn where the read took long, with those since the last warning."""
        begun, length = self._under_way.pop(threading.get_ident())
        now = time.monotonic()
        if now - begun < _LONG:
            return
        with _lock:
            self._count, self._longest = self._count + 1, max(self._longest, now - begun)
            if now < self._silent_until and begun != self._named:
                return
            count, longest, self._named = self._count, self._longest, None
            self._count, self._longest, self._silent_until = 0, 0.0, now + _PAUSE
        more = f", {count} reads since the last warning up to {longest:.0f} s" if count > 1 else ""
        self._tell(f"took {now - begun:.0f} s{more}", length)

    def look(self) -> None:
        """Warn where reads are under way for long."""
        now = time.monotonic()
        waiting = sorted(read for read in tuple(self._under_way.values()) if now - read[0] >= _LONG)
        with _lock:
            if not waiting or now < self._silent_until:
                return
            self._silent_until = now + _PAUSE
            self._named, length = waiting[0]
        begun = self._named
        more = f", {len(waiting)} reads wait" if len(waiting) > 1 else ""
        self._tell(f"takes {now - begun:.0f} s by now{more}", length)

    def _tell(self, seconds: str, length: int) -> None:
        _log.warning(
            "%s: its disk stalls: reading %d bytes %s. A copy on a local disk can be read instead: "
            "docs/data.md",
            self._path,
            length,
            seconds,
        )


@contextmanager
def stalls_logged() -> Iterator[None]:
    """Inside, a read that does not return is named, too, as long as it does not."""
    leaving = threading.Event()

    def watch() -> None:
        while not leaving.wait(_LONG):
            with _lock:
                known = tuple(_everywhere)
            for stalls in known:
                stalls.look()

    thread = threading.Thread(target=watch, name="stalls", daemon=True)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()
