"""Images a second from storage that has to be waited for, `block` order against `global`:

    python benchmarks/cold_storage.py

Two storages, a set of synthetic faces repeated to 400,000 records on each:

- this machine's disk, its page cache dropped for the file before every pass (Linux only);
- a cloud disk that is acted out: 3,000 requests a second, 125 MB/s, 1 ms until an answer, under a
  page cache that starts empty. Reading waits as long as that disk would take; announced reads are
  under way meanwhile. A figure from it says what the order of reads costs, not what this machine
  does.

Each order is run with announcing what comes and without. Every image is decoded, by two threads.
Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, save, show
from pipeline.collection import Collection
from pipeline.dali_loader import Loader
from pipeline.order import BlockOrder, GlobalOrder, Order
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.record_file import RecordFile
from pipeline.records.recordio import RecordWriter, pack_image
from synthetic import encode_jpeg, render

BATCH, THREADS, DRAWN = 128, 2, 500
BLOCK, WINDOW = 256, 32  # 8,192 records are mixed
PAGE = 4096

REQUESTS_PER_S, BYTES_PER_S, LATENCY_S = 3_000, 125e6, 1e-3


class CloudDisk(RecordFile):
    """A file that takes as long as if it lay on a cloud disk, with a page cache in front of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # When each page is, or was, there; never, as long as nobody asked.
        self._there = np.full(self.size // PAGE + 1, np.inf)
        self._free_at = 0.0  # when the disk has dealt with everything that it was asked for
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        wait = self._request(offset, length) - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        return super().read(offset, length)

    def will_need(self, offset: int, length: int) -> None:
        self._request(offset, length)

    def _request(self, offset: int, length: int) -> float:
        """Ask for what was not asked for before; returns when all of it is there."""
        pages = self._there[offset // PAGE : (offset + length - 1) // PAGE + 1]
        with self._lock:
            missing = np.isinf(pages)
            if missing.any():
                busy = max(missing.sum() * PAGE / BYTES_PER_S, 1 / REQUESTS_PER_S)
                self._free_at = max(self._free_at, time.perf_counter()) + busy
                pages[missing] = self._free_at + LATENCY_S
            return float(pages.max())


def draw_set(folder: Path, records: int) -> RecordIndex:
    """A .rec of `records` synthetic faces, DRAWN different ones."""
    faces = [encode_jpeg(render(k // 10, k % 10, seed=0)) for k in range(DRAWN)]
    with RecordWriter(folder / "train.rec") as writer:
        for number, face in enumerate(itertools.islice(itertools.cycle(faces), records)):
            writer.write(pack_image(face, float(number % DRAWN // 10), number))
    os.sync()
    return open_index(folder)


def drop_cache(path: Path) -> None:
    """Let the system forget the file's pages."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def images_per_s(index: RecordIndex, order: Order, *, announce: bool, seconds: float) -> float:
    """Of one pass from the start of an epoch, or as much of it as fits into `seconds`."""
    loader = Loader(
        Collection.of(index),
        order=order,
        global_batch=BATCH,
        device=torch.device("cpu"),
        threads=THREADS,
    )
    if not announce:
        index.file.will_need = lambda offset, length: None  # type: ignore[method-assign]
    begin, steps = time.perf_counter(), 0
    with closing(loader.stream(0)) as stream:
        while steps < loader.steps_per_epoch and time.perf_counter() - begin < seconds:
            next(stream)
            steps += 1
    return steps * BATCH / (time.perf_counter() - begin)


def measure(rec: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Median images a second of every storage, order and way, taken in turn."""
    storages = {"this disk": RecordFile, "cloud disk, acted out": CloudDisk}
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for storage, order, announce in itertools.product(
            storages, ("global", "block"), (True, False)
        ):
            index = open_index(rec)
            count = len(index)
            drop_cache(rec)
            index.file = storages[storage](rec)
            chosen = (
                GlobalOrder(count, seed=1)
                if order == "global"
                else BlockOrder(count, seed=1, block=BLOCK, window=WINDOW)
            )
            name = f"{storage}, {order}, {'announced' if announce else 'not announced'}"
            rate = images_per_s(index, chosen, announce=announce, seconds=seconds)
            rates.setdefault(name, []).append(rate)
    return {name: statistics.median(found) for name, found in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--records", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="a pass at most")
    parser.add_argument("--folder", type=Path, help="where to write the file (default: temporary)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        index = draw_set(Path(folder), arguments.records)
        size = index.path.stat().st_size
        rates = measure(index.path, arguments.rounds, arguments.seconds)
    rows = [(name, f"{rate:,.0f}") for name, rate in rates.items()]
    show(("storage, order, reads ahead", "images/s"), rows)
    about = about_cpu() | {
        "bytes": size,
        "records": arguments.records,
        "batch": BATCH,
        "threads": THREADS,
        "block_records": BLOCK,
        "window_blocks": WINDOW,
        "acted_out": {
            "requests_per_s": REQUESTS_PER_S,
            "bytes_per_s": BYTES_PER_S,
            "latency_s": LATENCY_S,
        },
    }
    save("cold_storage", about, images_per_s=rates)


if __name__ == "__main__":
    main()
