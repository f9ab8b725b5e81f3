"""How long each phase of a step takes, measured without stopping the device."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch

# A device that reaches the end of a lap within this share of it has caught up with the host.
_CAUGHT_UP = 0.1


@dataclass(frozen=True)
class Laps:
    """Seconds by phase since the last reading; what was skipped is in none of them."""

    seconds: dict[str, float]  # on the device's clock; all together the time that passed
    host_seconds: dict[str, float]  # on the host's clock, which does not wait for the device
    host_bound: dict[str, float]  # of `seconds`, laps at whose end the device had nothing left

    @property
    def total(self) -> float:
        """All seconds together."""
        return sum(self.seconds.values())


class _Mark(NamedTuple):
    phase: str | None  # what ends here; none: nothing that counts
    host: float  # seconds
    event: Any  # in the device's queue; none on a CPU, whose clock is the host's


class Stopwatch:
    """Laps on two clocks: the host's, and events in the queue of a device that has one.

    The host asks for work ahead of the device, so its clock says how long it waited itself, as for
    a batch, and the events say how long the work took. Both together say who waited for whom.
    """

    def __init__(self, device: torch.device) -> None:
        self._module = None if device.type == "cpu" else torch.get_device_module(device)
        self._marks = [self._wait_for_device()]
        self._aligned = self._marks[0]

    def lap(self, phase: str) -> None:
        """What has passed since the last lap was `phase`."""
        self._marks.append(self._mark(phase))

    def skip(self) -> None:
        """What has passed since the last lap, such as a verification, counts for nothing."""
        self._marks.append(self._mark(None))

    def laps(self) -> Laps:
        """The laps since the last reading; waits for the device."""
        aligned = self._wait_for_device()
        seconds: dict[str, float] = defaultdict(float)
        host_seconds: dict[str, float] = defaultdict(float)
        host_bound: dict[str, float] = defaultdict(float)
        for begin, end in pairwise(self._marks):
            if end.phase is None:
                continue
            passed = host_passed = end.host - begin.host
            if self._module is not None:
                passed = begin.event.elapsed_time(end.event) / 1000
                reached = self._aligned.event.elapsed_time(end.event) / 1000
                if reached - (end.host - self._aligned.host) < _CAUGHT_UP * passed:
                    host_bound[end.phase] += passed
            seconds[end.phase] += passed
            host_seconds[end.phase] += host_passed
        del self._marks[:-1]
        self._aligned = aligned
        return Laps(dict(seconds), dict(host_seconds), dict(host_bound))

    def _wait_for_device(self) -> _Mark:
        """A mark that both clocks pass at once, the device having nothing else to do."""
        if self._module is not None:
            self._module.synchronize()
        return self._mark(None)

    def _mark(self, phase: str | None) -> _Mark:
        event = None
        if self._module is not None:
            event = self._module.Event(enable_timing=True)
            event.record()
        return _Mark(phase, time.perf_counter(), event)
