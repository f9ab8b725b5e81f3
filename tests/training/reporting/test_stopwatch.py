"""Laps on the host's clock, and on a device that works off a queue behind the host."""

from __future__ import annotations

import time

import pytest
import torch

from tests.clock import Clock
from training.reporting.stopwatch import Laps, Stopwatch


class Device:
    """Stands in for torch.cuda: does what it is asked for in order, never before it is asked."""

    rate = 1.0  # of its clock, in seconds a second of the host's

    def __init__(self, clock: Clock) -> None:
        self._clock, self._free_at = clock, 0.0
        self.Event = lambda enable_timing: Event(self)

    def launch(self, *, host: float, device: float) -> None:
        """Ask for work; both durations in seconds."""
        self._clock.now += host
        self._free_at = self.reached() + device

    def reached(self) -> float:
        return max(self._free_at, self._clock.now)

    def synchronize(self) -> None:
        self._clock.now = self.reached()


class Event:
    def __init__(self, device: Device) -> None:
        self._device = device

    def record(self) -> None:
        self.at = self._device.reached()

    def elapsed_time(self, end: Event) -> float:
        return 1000 * self._device.rate * (end.at - self.at)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("training.reporting.stopwatch.time", clock)
    return clock


@pytest.fixture
def device(clock, monkeypatch) -> Device:
    device = Device(clock)
    monkeypatch.setattr(torch, "get_device_module", lambda _: device)
    return device


def train(stopwatch: Stopwatch, device: Device, clock: Clock, **times: float) -> Laps:
    """Ten steps; seconds for: wait (host), launch (host) and work (device) of each phase."""
    for _ in range(10):
        stopwatch.lap("other")
        clock.now += times["wait"]
        stopwatch.lap("data")
        for phase in ("forward", "backward"):
            device.launch(host=times["launch"], device=times["work"])
            stopwatch.lap(phase)
    return stopwatch.laps()


def test_a_cpu_has_one_clock(clock):
    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in range(3):
        clock.now += 1
        stopwatch.lap("data")
        clock.now += 2
        stopwatch.lap("forward")
    expected = {"data": 3.0, "forward": 6.0}
    assert stopwatch.laps() == Laps(expected, expected, {})
    assert stopwatch.laps().seconds == {}, "a reading begins again"


def test_what_is_skipped_is_in_no_lap(clock):
    stopwatch = Stopwatch(torch.device("cpu"))
    clock.now += 100
    stopwatch.skip()
    clock.now += 1
    stopwatch.lap("data")
    assert stopwatch.laps().seconds == {"data": 1.0}
    assert stopwatch.laps().total == 0


def test_the_time_of_a_reading_belongs_to_the_next_lap(clock):
    """Writing the log is not free, so it counts in the images per second."""
    stopwatch = Stopwatch(torch.device("cpu"))
    stopwatch.lap("update")
    clock.now += 3
    stopwatch.laps()
    clock.now += 5
    stopwatch.lap("other")
    assert stopwatch.laps().seconds == {"other": 8.0}


def test_a_busy_device_sets_the_pace(clock, device):
    """The host waits for images on its own clock, while the device still has work."""
    stopwatch = Stopwatch(torch.device("meta"))
    laps = train(stopwatch, device, clock, wait=0.01, launch=0.02, work=0.5)
    assert laps.host_seconds["data"] == pytest.approx(0.1)
    assert laps.seconds["data"] == pytest.approx(0.01), "but for the first batch"
    assert laps.seconds["forward"] == pytest.approx(5, rel=0.01)
    assert laps.total == pytest.approx(clock.now)
    assert not {"forward", "backward"} & laps.host_bound.keys()


def test_a_device_that_waits_for_each_kernel_is_host_bound(clock, device):
    stopwatch = Stopwatch(torch.device("meta"))
    laps = train(stopwatch, device, clock, wait=0.0, launch=0.02, work=0.001)
    assert laps.host_bound["backward"] == pytest.approx(laps.seconds["backward"])
    assert laps.seconds["forward"] == pytest.approx(0.2, rel=0.02)


def test_the_clocks_are_aligned_again_at_every_reading(clock, device):
    """They run apart, as quartz does; a long reading must not blur the next."""
    stopwatch = Stopwatch(torch.device("meta"))
    device.rate = 1.001
    train(stopwatch, device, clock, wait=0.0, launch=0.02, work=0.5)
    idle = train(stopwatch, device, clock, wait=0.0, launch=0.02, work=0.001)
    assert idle.host_bound["forward"] == pytest.approx(idle.seconds["forward"])
    busy = train(stopwatch, device, clock, wait=0.0, launch=0.02, work=0.5)
    assert "forward" not in busy.host_bound
    assert busy.total == pytest.approx(10, rel=0.01)


def test_slow_images_do_not_make_the_steps_host_bound(clock, device):
    """The device runs dry before every step, but not within it."""
    stopwatch = Stopwatch(torch.device("meta"))
    laps = train(stopwatch, device, clock, wait=2.0, launch=0.02, work=0.5)
    assert laps.host_seconds["data"] == pytest.approx(20)
    assert laps.seconds["data"] > 9
    assert not {"forward", "backward"} & laps.host_bound.keys()


@pytest.mark.gpu
def test_a_gpu_is_seen_to_be_busy_and_to_idle():
    """Its sleep of a second the host need not wait for; the host's own sleep it waits out."""
    stopwatch = Stopwatch(torch.device("cuda"))
    torch.cuda._sleep(2 * 10**9)  # cycles
    stopwatch.lap("busy")
    torch.cuda.synchronize()
    time.sleep(0.05)
    stopwatch.lap("idle")
    assert set(stopwatch.laps().host_bound) == {"idle"}
