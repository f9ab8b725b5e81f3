"""What data.stage costs: the rate of its copying beside `cp`, and the stream's meanwhile:

    python benchmarks/staging.py FOLDER

Source and copy both lie in FOLDER, on the disk that is asked about; no network disk is in this. The
source is read from memory ("warm") or from that disk ("cold"). `cp` counts with the sync after it,
as a copy of ours is synced. The stream is a run's in block order, with the flip; beside a copy it
counts while that is under way, and has from it what is there. All take turns, medians count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import data_in_place
from benchmarks.harness import about_cpu, save, show
from pipeline.collection import Collection
from pipeline.dali_loader import Loader
from pipeline.order import BlockOrder
from pipeline.records.index import open_index
from pipeline.records.record_file import RecordFile
from pipeline.staging.by_order import pieces_by_need
from pipeline.staging.copier import Copier
from pipeline.staging.local_copy import LocalCopy, Original

IMAGES, THREADS, BATCH = 60_000, 2, 128


def prepare(rec: Path, state: str) -> None:
    """Bring the source into memory, or out of it."""
    with rec.open("rb") as file:
        while file.read(1 << 24):
            pass
        if state == "cold":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cp(rec: Path, stage: Path) -> float:
    """Bytes a second."""
    begin = time.perf_counter()
    subprocess.run(["cp", rec, stage / "copy"], check=True)
    with (stage / "copy").open("r+b") as file:
        os.fsync(file)
    return rec.stat().st_size / (time.perf_counter() - begin)


def run(rec: Path, stage: Path | None, *, stream: bool) -> float:
    """Images a second of a stream until the copy is there, or of an epoch without a stage.

    Without a stream, bytes a second of the copying alone.
    """
    index = open_index(rec)
    file, cpu = RecordFile(rec), torch.device("cpu")
    order = BlockOrder(len(index), seed=0, block=256, window=64)
    index.file, copying = file, threading.Thread()
    if stage:
        original = Original(file.path, file.size, file.changed, file.fingerprint)
        file.copy = copy = LocalCopy(stage, original)
        wanted = pieces_by_need(
            0,
            copy=copy,
            records=Collection.of(index),
            order=order,
            epoch=0,
            position=0,
            epoch_records=len(index),
        )
        copier = Copier(file, copy, wanted)
        copying = threading.Thread(target=copier.run, args=(threading.Event(),))
    loader = Loader(
        index, global_batch=BATCH, device=cpu, order=order, augment=("flip",), threads=THREADS
    )
    batches, images, begin = loader.stream(0), 0, time.perf_counter()
    if stage:
        copying.start()
    while stream and images < loader.steps_per_epoch * BATCH and copying.is_alive() == bool(stage):
        images += len(next(batches).labels)
    rate = images / (time.perf_counter() - begin)
    batches.close()
    if stage:
        copying.join()
    return rate if stream else file.size / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ways = {
        "cp, bytes/s": cp,
        "data.stage, bytes/s": lambda rec, stage: run(rec, stage, stream=False),
        "stream, images/s": lambda rec, stage: run(rec, None, stream=True),
        "stream beside copying, images/s": lambda rec, stage: run(rec, stage, stream=True),
    }
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        data_in_place.IMAGES = IMAGES
        rec = data_in_place.as_rec(Path(folder) / "set", data_in_place.draw()) / "train.rec"
        size = rec.stat().st_size
        for state in ["warm", "cold"] * (arguments.rounds + 1):  # the first of each is left out
            for name, way in ways.items():
                with tempfile.TemporaryDirectory(dir=folder) as stage:
                    prepare(rec, state)
                    found[name][state].append(way(rec, Path(stage)))
    medians = {
        name: {state: statistics.median(rates[1:]) for state, rates in states.items()}
        for name, states in found.items()
    }
    rows = [(name, *(f"{rate:,.0f}" for rate in by.values())) for name, by in medians.items()]
    show(("", "warm", "cold"), rows, title=f"{IMAGES:,} images, {size / 1e9:.2f} GB")
    about = {"batch": BATCH, "threads": THREADS, "records": IMAGES, "rounds": arguments.rounds}
    save("staging", about_cpu() | about | {"bytes": size}, **medians)


if __name__ == "__main__":
    main()
