"""How a tool ends where it cannot do what it was asked for: in a line, with exit code 1."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.cache_folder import provide_caches
from pipeline.named_path import refusal
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


@contextmanager
def command(tool: str, mendable: tuple[type[ValueError], ...] = (ValueError,)) -> Iterator[None]:
    """Around the work of a tool: what its user can mend ends it in a line that says how.

    That is an OSError about a file or a disk, and what the rooms raise for it, `mendable`. What is
    left is a mistake of ours and shows its trace.
    """
    provide_caches()
    try:
        yield
    except mendable as error:
        sys.exit(f"{tool}: {error}")
    except OSError as error:
        line = refusal(error)
        if line is None:
            raise
        sys.exit(f"{tool}: {line}")
