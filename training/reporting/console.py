"""A console that may break, as under `| head`, beside a tee that died, or on a full disk."""

from __future__ import annotations

import io
import logging
import os
import select
import sys
from collections.abc import Callable
from typing import Any, TextIO

from training.reporting.outlet import Outlet


class Stream:
    """A text stream whose failures do not reach who writes to it; what it cannot show is lost.

    Args:
        stream: what is written to.
        name: of it, for people.
        tell: as an `Outlet`'s.
    """

    def __init__(self, stream: TextIO, *, name: str, tell: Callable[[str], object]) -> None:
        self._stream = stream
        self._outlet = Outlet(name, tell=tell)
        self._gone = False

    def write(self, text: str) -> int:
        """Show a text at once, where that can be: left in a buffer, it would fail later."""
        if not self._gone:
            self._outlet.attempt(lambda: self._show(text))
        return len(text)

    def flush(self) -> None:
        """Nothing is left to show."""

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's: encoding, isatty, fileno."""
        return getattr(self._stream, name)

    def _show(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:  # nobody will ever read from it again
            self._gone = True
            _discard(self._stream)
            raise


def protect_console() -> None:
    """Let stdout and stderr break without ending the process, whoever writes to them."""

    def tell(text: str) -> None:
        text += ". What the console would show is in run.log"
        print(text, file=sys.stderr)  # which may still be the terminal
        logging.warning(text)  # for run.log

    for number in range(3):  # where one is closed, a checkpoint's file would get it, and its lines
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is not None:
        sys.stderr = Stream(legible(sys.stderr), name="stderr", tell=lambda text: None)
    if sys.stdout is not None:
        sys.stdout = Stream(legible(sys.stdout), name="stdout", tell=tell)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def discard_unread(*streams: TextIO | None) -> bool:
    """Discard those that are a pipe whose other end is closed; returns whether any is."""
    unread = [stream for stream in streams if stream is not None and _is_unread(stream)]
    for stream in unread:
        _discard(stream)
    return bool(unread)


def _is_unread(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard(stream: TextIO) -> None:
    """Show nothing of it from now on, nor what it still holds, which would fail at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def legible(stream: TextIO) -> TextIO:
    """The same, with escapes for letters that its encoding does not have, as under LC_ALL=C."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
