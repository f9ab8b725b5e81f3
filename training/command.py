"""How a command ends where it cannot do what it was asked for: in a line on how to mend it."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from facestream import USER_ERROR_EXIT_CODE
from pipeline.cache_folder import provide_caches
from pipeline.named_path import mendable
from training.reporting.console import discard_unread, legible
from training.setting_range import Range


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `low` to `high`."""
    allowed = Range(low, high)

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number") from None
        if number not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {allowed}")
        return number

    return read


def share(text: str) -> float:
    """The type of an argument that is a number between 0 and 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number between 0 and 1")
    return number


@contextmanager
def command(name: str) -> Iterator[None]:
    """Around the work of a command: what its user can mend ends it in a line on stderr.

    That is a UserError, or an OSError about a file or a disk; the exit code is
    USER_ERROR_EXIT_CODE. What is left is a mistake of ours and shows its trace. Signals that end it
    let it remove what it has half made; those that somebody else handles are left to them. A reader
    that has gone, as under `| head`, ends it without a word, with the shell's code of SIGPIPE.
    """
    with ending(name):
        provide_caches()
        yield


@contextmanager
def ending(name: str) -> Iterator[None]:
    """A `command` that has no caches to provide, since it looks at a machine as it is."""
    for stream in (sys.stdout, sys.stderr):
        legible(stream)
    try:
        with _unwinding():
            yield
            if sys.stdout is not None:
                sys.stdout.flush()  # here a disk that is full can still be named
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # rich has found that nobody reads
            sys.exit(128 + signal.SIGPIPE)
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and discard_unread(sys.stdout, sys.stderr):
            sys.exit(128 + signal.SIGPIPE)
        line = mendable(error)
        if line is None:
            raise
        print(f"{name}: {line}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)


@contextmanager
def _unwinding() -> Iterator[None]:
    """Signals raise SystemExit, so that temporary files go."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    ours = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
