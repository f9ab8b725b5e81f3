"""Work in processes of their own: whatever crashes or hangs there, this process goes on."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

_FORK = multiprocessing.get_context("fork")
_DIE_WITH_PARENT = 1  # of Linux's prctl


class ApartError(Exception):
    """Why work in another process has no result, in words."""


def apart(work: Callable[[], Any], *, seconds: float) -> Any:
    """What `work` returns; it may hold any object that can be pickled.

    Raises ApartError where it raises, crashes, or takes longer than `seconds`.
    """
    (result,) = apart_together([work], seconds=seconds)
    if isinstance(result, ApartError):
        raise result
    return result


def apart_together(works: Sequence[Callable[[], Any]], *, seconds: float) -> list[Any]:
    """The same of several at once, such as ranks; an ApartError is then among the results."""
    end = time.monotonic() + seconds
    results: list[Any] = []
    with contextlib.ExitStack() as running:
        for one in [running.enter_context(_started(work)) for work in works]:
            try:
                results.append(_result(*one, left=end - time.monotonic(), limit=seconds))
            except ApartError as error:
                results.append(error)
    return results


@contextlib.contextmanager
def _started(work: Callable[[], Any]) -> Iterator[tuple[Any, Connection, BinaryIO]]:
    receiver, sender = _FORK.Pipe(duplex=False)
    # In memory: the disk may be what is at fault.
    with os.fdopen(os.memfd_create("said"), "w+b") as said, receiver:
        process = _FORK.Process(target=_work, args=(work, sender, said.fileno()))
        process.start()
        sender.close()
        try:
            yield process, receiver, said
        finally:
            process.kill()
            process.join()


def _work(work: Callable[[], Any], sender: Connection, said: int) -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    for stream in (1, 2):  # of libraries: the report has the last line, where it matters
        os.dup2(said, stream)
    try:
        sender.send((work(), ""))
    except Exception as error:
        sender.send((None, f"{type(error).__name__}: {error}"))


def _result(
    process: Any, receiver: Connection, said: BinaryIO, *, left: float, limit: float
) -> Any:
    if not receiver.poll(max(left, 0)):
        raise ApartError(f"not done after {limit:g} seconds{_last_line(said)}")
    try:
        result, error = receiver.recv()
    except EOFError:
        process.join()
        raise ApartError(f"{_ending(process.exitcode)}{_last_line(said)}") from None
    if error:
        raise ApartError(_short(error))
    return result


def _ending(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _last_line(said: BinaryIO) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"; its last line: {_short(last)}" if last else ""


def _short(text: str, size: int = 300) -> str:
    """In one line, of which the middle may be left out."""
    line = " ".join(text.split())
    return line if len(line) <= size else f"{line[: size // 2]} … {line[-size // 2 :]}"
