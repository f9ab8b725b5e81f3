"""What a stream holds while it runs, and gives back when it ends: memory, threads, the process."""

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import dali_loader
from tests.clock import LIMIT
from tests.pipeline.numbered_images import SIZE, WAYS, loader


class Device:
    """Stands in for a GPU's module: events that are reached when the test says so."""

    reached = 0

    class Event:
        count = 0

        def record(self) -> None:
            Device.Event.count += 1
            self.number = Device.Event.count

        def query(self) -> bool:
            return self.number <= Device.reached


def test_batches_are_held_until_the_device_has_read_them(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: Device)
    in_use = dali_loader._InUse(torch.device("meta"))
    batches = [np.zeros(1) for _ in range(5)]
    alive = [weakref.ref(batch) for batch in batches]
    for number in range(5):
        Device.reached = max(0, number - 2)  # the device is three steps behind
        in_use.keep(batches[number])
    batches.clear()
    gc.collect()
    assert [ref() is not None for ref in alive] == [False, False, True, True, True]


@WAYS
def test_threads_end_with_the_stream(index, augment):
    before = threading.active_count()
    for _ in range(5):
        stream = loader(index, augment=augment, threads=3).stream(0)
        next(stream)
        stream.close()
    assert threading.active_count() <= before


def resident_mb() -> float:
    """Memory of this process that is in use, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux counts for this test")
@WAYS
def test_two_hundred_epochs_cost_no_memory_threads_or_descriptors(index, augment):
    small = loader(index, augment=augment, threads=2)
    with closing(small.stream(0)) as stream:

        def after(epochs: int) -> tuple[float, int, int]:
            for _ in range(epochs * small.steps_per_epoch):
                next(stream)
            gc.collect()
            return resident_mb(), threading.active_count(), len(os.listdir("/proc/self/fd"))

        memory, threads, descriptors = after(50)  # what allocators keep for themselves is there
        later = after(200)
    # The process may open one more of its own; one an epoch would be 200.
    assert later[1] < threads + 20
    assert later[2] < descriptors + 20
    assert later[0] - memory < 4  # one batch of every epoch kept would be 7 MB


ENDLESS = """
import logging, sys, torch
sys.path.insert(0, {root!r})
from pipeline.dali_loader import Loader
from pipeline.records.index import open_index
loader = Loader(open_index({rec!r}), global_batch=12, device=torch.device("cpu"), image_size={size},
                augment={augment!r}, threads=2)
for number, batch in enumerate(loader.stream(0)):
    if number == 3:
        print("running", flush=True)
        if {fails}:
            raise KeyError("something else in the loop")
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True], ids=["ctrl-c", "exception"])
@WAYS
def test_a_process_ends_after_ctrl_c_or_an_exception(index, augment, fails):
    root = str(Path(__file__).parents[2])
    code = ENDLESS.format(root=root, rec=str(index.path), size=SIZE, augment=augment, fails=fails)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "running\n"
            if not fails:
                process.send_signal(signal.SIGINT)
            _, message = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert process.returncode != 0
    assert ("something else" if fails else "KeyboardInterrupt") in message
