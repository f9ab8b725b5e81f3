"""What all stages share: the command line, and rows that outlive their stage."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.suite.measure import (
    TOY,
    Effort,
    Maker,
    Row,
    forget,
    in_turn,
    of_all_ranks,
    peaks,
)
from training.allocator import keep_pages
from training.distributed import World, join_world, leave_world
from training.step.precision import choose_precision, set_determinism

_SPARE = 1.5  # a case is begun if it may take this much longer than the longest so far


class Figures:
    """A stage's rows, each in the file as soon as it is known: a stage that dies has left them.

    Args:
        path: a file of JSON lines, written by the main rank.
        seconds: the stage's limit.
        quick: whether this is a rehearsal, with sizes that take no time.
        memory: whether the memory that each way takes is measured, instead of its time.
    """

    def __init__(
        self, path: Path, world: World, *, seconds: float, quick: bool, memory: bool = False
    ) -> None:
        self.world, self.quick, self.failed = world, quick, False
        self._measure = peaks if memory else in_turn
        self._path, self._deadline, self._longest = path, time.monotonic() + seconds, 0.0
        self._turns = 0

    def add(self, **row: Any) -> None:
        """Write a row."""
        if self.world.is_main:
            write(self._path, row)

    def compare(
        self,
        ways: Mapping[str, Maker],
        effort: Effort,
        *,
        more: Callable[[str, Row], Row] = lambda way, found: {},
        **case: Any,
    ) -> None:
        """Write a row for each way of doing a case, called on every rank.

        Rows of ways that took turns have the same number under `turn`. Where there is no time left
        for the case, its one row says so under `skipped`.

        Args:
            more: what else is known of a way that was timed, from its row.
        """
        begin = time.monotonic()
        short = begin + _SPARE * self._longest > self._deadline
        if any(of_all_ranks(short)):
            self.add(**case, skipped="the stage's time would not suffice")
            return
        self._turns += 1
        forget(self.world.device)
        found = self._measure(ways, self.world.device, TOY if self.quick else effort)
        for way, row in found.items():
            self.failed |= "failed" in row
            also = more(way, row) if "seconds" in row else {}
            self.add(**case | {"turn": self._turns, "way": way} | row | also)
        self._longest = max(self._longest, time.monotonic() - begin)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line that every stage has."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", action="store_true")
    return parser.parse_args(arguments)


def write(path: Path, row: Row) -> None:
    """Add a row to a file of them."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def run_stage(stage: Callable[[Figures], None]) -> None:
    """The `main` of a stage: it joins the ranks, and exits with 1 where a way failed."""
    options = options_of()
    world = join_world(options.device)
    precision = choose_precision(world.device)
    precision.apply()
    set_determinism(False)
    if world.device.type == "cpu" and not options.memory:
        keep_pages()  # else what is timed is the C library giving pages back and taking them
    figures = Figures(
        options.figures,
        world,
        seconds=options.seconds,
        quick=options.quick,
        memory=options.memory,
    )
    stage(figures)
    leave_world()
    sys.exit(figures.failed)
