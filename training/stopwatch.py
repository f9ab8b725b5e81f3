"""How long each phase of a step takes, told without stopping the device."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch


class Stopwatch:
    """Seconds by phase of a step: the clock on a CPU, events on a GPU, read once in a while."""

    def __init__(self, device: torch.device) -> None:
        self._module = None if device.type == "cpu" else torch.get_device_module(device)
        self._marks: list[tuple[str, Any]] = []
        self.lap("start")

    def lap(self, phase: str) -> None:
        """What has passed since the last lap was `phase`."""
        if self._module is None:
            mark: Any = time.perf_counter()
        else:
            mark = self._module.Event(enable_timing=True)
            mark.record()
        self._marks.append((phase, mark))

    def read(self) -> dict[str, float]:
        """Seconds of each phase since the last reading; waits for the device."""
        if self._module is not None:
            self._module.synchronize()
        seconds: dict[str, float] = {}
        for (_, begin), (phase, end) in pairwise(self._marks):
            passed = end - begin if self._module is None else begin.elapsed_time(end) / 1000
            seconds[phase] = seconds.get(phase, 0.0) + passed
        del self._marks[:-1]
        return seconds
