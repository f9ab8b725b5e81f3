"""Places that what a run tells goes to. One that fails does not end the run.

A disk fills up, a folder is removed, the other end of a pipe dies: that is said once, counted and
tried again, and what can be kept meanwhile is kept. Only checkpoints may end a run.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_KEPT = 10_000  # pieces that a file gets later, when it can be written again


class Outlet:
    """Does what may fail with OSError, and says when that begins and when it is over.

    Args:
        name: of the place, for people.
        tell: says a line elsewhere than in this place. Warnings reach the console and run.log.
    """

    def __init__(self, name: str, *, tell: Callable[[str], object] = logging.warning) -> None:
        self._name, self._tell = name, tell
        self._failures = 0  # since it last worked

    def attempt(self, work: Callable[[], object]) -> bool:
        """Whether `work` was done; it may raise OSError."""
        try:
            work()
        except OSError as error:
            self._failures += 1
            if self._failures == 1:
                self._tell(f"{self._name}: {error}. The run goes on and tries again")
            return False
        if self._failures:
            failures, self._failures = self._failures, 0
            self._tell(f"{self._name} can be written again, after {failures} failures")
        return True


class AppendedFile:
    """A file that grows by pieces, each whole or not there; opened for each, so never in the way.

    Safe to use from several threads.

    Args:
        path: in a folder that exists or can be made in one that does.
        head: what the file begins with.
        tell: as an `Outlet`'s.
    """

    def __init__(
        self, path: Path, *, head: bytes = b"", tell: Callable[[str], object] = logging.warning
    ) -> None:
        self._path, self._head = path, head
        self._outlet = Outlet(str(path), tell=tell)
        self._waiting: deque[bytes] = deque(maxlen=_KEPT)
        self._lock = threading.RLock()

    def append(self, piece: bytes) -> None:
        """Add a piece at the end; later, with those that come then, where it cannot be now."""
        with self._lock:
            self._waiting.append(piece)
            self._outlet.attempt(self._write)

    def rewrite(self, work: Callable[[], object]) -> None:
        """Let `work` change what is there, and add what waits; it may raise OSError."""

        def change() -> None:
            work()
            self._write()

        with self._lock:
            self._outlet.attempt(change)

    def _write(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            size = file.tell()
            content = (b"" if size else self._head) + b"".join(self._waiting)
            try:
                written = 0
                while written < len(content):
                    written += file.write(content[written:])
            except OSError:
                with suppress(OSError):  # a full disk took a part; one that is gone keeps it
                    os.ftruncate(file.fileno(), size)
                raise
        self._waiting.clear()
