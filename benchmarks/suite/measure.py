"""The one clock of the suite: ways of doing the same, made one after another and timed in turn.

A machine's speed drifts, so what is compared takes turns in one process. Time to warm up is shown
apart, and what counts is the median of the rounds, with their 5th and 95th percentile.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from benchmarks.harness import take_turns
from training.planning.machine import own_memory
from training.reporting.meters import peak_memory

Row = dict[str, Any]
Step = Callable[[], object]
Maker = Callable[[], Step]


class Effort(NamedTuple):
    """How long ways are timed.

    Attributes:
        seconds: for all rounds of all ways together, so many rounds as fit into it.
        steps: of a way in a round. A device is waited for at their end only, so that the host may
            run ahead of it, as in training.
        warm_up: steps of each way before the first round.
        fewest, most: rounds, whatever they take.
    """

    seconds: float
    steps: int = 1
    warm_up: int = 2
    fewest: int = 3
    most: int = 50


TOY = Effort(seconds=0.0, warm_up=1, fewest=2)


def in_turn(makers: Mapping[str, Maker], device: torch.device, effort: Effort) -> dict[str, Row]:
    """Make every way and warm it up, then time those that work in turn; called on every rank.

    Returns:
        for each way `seconds`, `seconds_p5` and `seconds_p95` of a step, `rounds`, the seconds that
        making and warming up took, and on a GPU `peak_mb`, as `peaks` has it. Or `skipped` where it
        does not fit into memory, or `failed`; both with the reason.
    """
    found: dict[str, Row] = {}
    ways: dict[str, Step] = {}
    for name, make in makers.items():
        found[name], turn = _ready(make, device, effort)
        if turn is not None:
            ways[name] = turn
            if device.type == "cpu":  # whose pages are kept: `peaks` is for a process without that
                del found[name]["peak_mb"]
    if ways:
        for name, seconds in take_turns(ways, rounds=_rounds(ways, effort), warm_up=0).items():
            found[name] |= spread([one / effort.steps for one in seconds])
    return found


def peaks(makers: Mapping[str, Maker], device: torch.device, effort: Effort) -> dict[str, Row]:
    """Make every way, warm it up and drop it; called on every rank.

    On a CPU the pages of what was freed must not be kept, as `training.allocator.keep_pages` does:
    they would count as long as nothing fits into them.

    Returns:
        for each way `peak_mb`, the memory in 10^6 bytes that it took at most, what it keeps
        included: of tensors on a GPU, of this process on a CPU. Or why not, as `in_turn`.
    """
    return {name: _ready(make, device, effort)[0] for name, make in makers.items()}


def spread(seconds: Sequence[float]) -> Row:
    """Median, 5th and 95th percentile of some rounds, and how many they are."""
    taken = sorted(seconds)
    fringe = len(taken) // 20
    return {
        "seconds": statistics.median(taken),
        "seconds_p5": taken[fringe],
        "seconds_p95": taken[-1 - fringe],
        "rounds": len(taken),
    }


def forget(device: torch.device) -> None:
    """Give back the memory of what is over."""
    gc.collect()
    torch.compiler.reset()
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.synchronize(device)
        module.empty_cache()


def _ready(make: Maker, device: torch.device, effort: Effort) -> tuple[Row, Step | None]:
    """A way that is made and warmed up, and what that took; None where it does not work."""
    begin, before = time.perf_counter(), _held(device)
    try:
        turn = _turn(make(), device, effort.steps)
        for _ in range(-(-effort.warm_up // effort.steps)):
            turn()
    except torch.OutOfMemoryError:
        return {"skipped": "it does not fit into the memory"}, None
    except Exception as error:  # whatever it is, it must not hide the other ways
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}, None
    taken = (peak_memory(device) - before) / 1e6
    return {"warm_up_s": time.perf_counter() - begin, "peak_mb": taken}, turn


def _turn(step: Step, device: torch.device, steps: int) -> Step:
    def turn() -> None:
        for _ in range(steps):
            step()
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)

    return turn


def _rounds(ways: Mapping[str, Step], effort: Effort) -> int:
    """So many on every rank: one round is taken to see how long it is."""
    begin = time.perf_counter()
    for way in ways.values():
        way()
    slowest = max(of_all_ranks(time.perf_counter() - begin))
    return min(effort.most, max(effort.fewest, int(effort.seconds / slowest)))


def of_all_ranks(value: Any) -> list[Any]:
    """What every rank has there."""
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _held(device: torch.device) -> int:
    """Bytes in use now; from here on the peak is that of what comes."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.reset_peak_memory_stats(device)
        return module.memory_allocated(device)
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # else what is free would be taken for what is held
    Path("/proc/self/clear_refs").write_text("5")
    return own_memory()
