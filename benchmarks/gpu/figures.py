"""What all stages share: the command line, rows that outlive their stage, and a clock."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.distributed import World, join_world, leave_world
from training.step.precision import choose_precision, set_determinism

Row = dict[str, Any]
_SPARE = 1.5  # a case is begun if it may take this much longer than the longest so far


class Figures:
    """A stage's rows, each in the file as soon as it is known: a stage that dies has left them.

    Args:
        path: a file of JSON lines, written by the main rank.
        seconds: the stage's limit.
        quick: whether this is a rehearsal, with sizes that take no time.
    """

    def __init__(self, path: Path, world: World, *, seconds: float, quick: bool) -> None:
        self.world, self.quick, self.failed = world, quick, False
        self._path, self._deadline, self._longest = path, time.monotonic() + seconds, 0.0

    def add(self, **row: Any) -> None:
        """Write a row."""
        if self.world.is_main:
            write(self._path, row)

    def measure(self, function: Callable[..., Row], **case: Any) -> Row:
        """Write and return what `function` finds for a case, called on every rank.

        Where it finds nothing, the row says why under `skipped` (the time or the memory is over)
        or `failed`, and the next case has its turn.
        """
        begin = time.monotonic()
        short = begin + _SPARE * self._longest > self._deadline
        if any(_of_all_ranks(short)):
            found: Row = {"skipped": "the stage's time would not suffice"}
        else:
            found = self._found(function, case)
        self._longest = max(self._longest, time.monotonic() - begin)
        row = case | found
        self.add(**row)
        return row

    def _found(self, function: Callable[..., Row], case: Row) -> Row:
        forget_peak(self.world.device)
        try:
            return function(**case)
        except torch.OutOfMemoryError:
            return {"skipped": "it does not fit into the memory"}
        except Exception as error:  # whatever it is, it must not hide the other cases
            traceback.print_exc()
            self.failed = True
            return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line that every stage has."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args(arguments)


def write(path: Path, row: Row) -> None:
    """Add a row to a file of them."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def run_stage(stage: Callable[[Figures], None]) -> None:
    """The `main` of a stage: it joins the ranks, and exits with 1 where a case failed."""
    options = options_of()
    world = join_world(options.device)
    precision = choose_precision(world.device)
    precision.apply()
    set_determinism(False)
    figures = Figures(options.figures, world, seconds=options.seconds, quick=options.quick)
    stage(figures)
    leave_world()
    sys.exit(figures.failed)


def seconds_of(
    step: Callable[[], object], device: torch.device, *, warm_up: int, repeats: int
) -> Row:
    """Seconds of a step, as steps follow one another in training: median, 5th and 95th percentile.

    The host is not stopped between steps; it may run ahead of a device.
    """
    for _ in range(warm_up):
        step()
    marks = [_mark(device)]
    for _ in range(repeats):
        step()
        marks.append(_mark(device))
    if device.type == "cpu":
        taken = [end - begin for begin, end in pairwise(marks)]
    else:
        torch.get_device_module(device).synchronize(device)
        taken = [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(marks)]
    taken.sort()
    fringe = len(taken) // 20
    return {
        "seconds": statistics.median(taken),
        "seconds_p5": taken[fringe],
        "seconds_p95": taken[-1 - fringe],
    }


def peak_mb(device: torch.device) -> Row:
    """10^6 bytes that tensors took at once since `forget_peak`; nothing is known of a CPU."""
    if device.type == "cpu":
        return {}
    return {"peak_mb": torch.get_device_module(device).max_memory_allocated(device) / 1e6}


def forget_peak(device: torch.device) -> None:
    """Give back the memory of what is over."""
    gc.collect()
    torch.compiler.reset()
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.synchronize(device)
        module.empty_cache()
        module.reset_peak_memory_stats(device)


def _mark(device: torch.device) -> Any:
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.get_device_module(device).Event(enable_timing=True)
    event.record()
    return event


def _of_all_ranks(value: bool) -> list[bool]:
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
