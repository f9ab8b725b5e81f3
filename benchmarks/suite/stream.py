"""Images a second from a .rec to batches on the device, stage by stage and beside other ways.

Reading alone; bare libjpeg-turbo on all cores, the limit where the CPU decodes; decoded batches
handed over to the device, by where they are decoded; the same with augmentation. Beside them DALI's
own reader with its graph, and torch's DataLoader with Pillow. A round is a pass over all records.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.loader import (
    Pass,
    bare_decoding,
    dali_reader,
    draw_set,
    ours,
    reading,
    torch_loader,
)
from benchmarks.suite.figures import Figures, run_stage
from benchmarks.suite.measure import Effort, Maker, Row
from pipeline.dali_loader import choose_threads
from pipeline.records.index import open_index
from training.distributed import World

BASELINE = "bare libjpeg-turbo"
RECIPES = ("flip", "arcface", "adaface", "quality")
DECODERS = {"cpu": ("cpu",)}  # by type of device; others decode on it or beside it
BATCH = {"cpu": 128}  # of a rank; others 512


def stream(figures: Figures) -> None:
    world = figures.world
    kind = world.device.type
    drawn, records = (8, 160) if figures.quick else (2_000, 20_000)
    batch = 16 if figures.quick else BATCH.get(kind, 512)
    threads = choose_threads(world.local_world_size)
    with tempfile.TemporaryDirectory() as folder:  # every rank draws for itself
        index = open_index(draw_set(Path(folder), drawn=drawn, records=records))
        shared = {
            "global_batch": batch * world.world_size,
            "rank": world.rank,
            "world_size": world.world_size,
            "device": world.device,
            "threads": threads,
        }
        ways: dict[str, Callable[[], Pass]] = {
            "read": partial(reading, index),
            BASELINE: partial(bare_decoding, index, threads=threads),
        }
        for decode in DECODERS.get(kind, ("gpu", "hybrid")):
            stream_of = partial(ours, index, decode=decode, **shared)
            ways[f"decode ({decode}), hand over"] = stream_of
            for recipe in RECIPES:
                name = f"decode ({decode}), {recipe}, hand over"
                ways[name] = partial(ours, index, recipe, decode=decode, **shared)
        if kind == "cpu":
            ways["DALI's reader, float"] = partial(dali_reader, index)
            ways["torch DataLoader, Pillow"] = partial(torch_loader, index)
        passes: dict[str, int] = {}
        makers: dict[str, Maker] = {
            name: partial(_counting, way, passes, name) for name, way in ways.items()
        }
        figures.compare(
            makers,
            Effort(seconds=60.0 if kind == "cpu" else 15.0, warm_up=1),
            more=partial(_rate, passes, world),
            batch=batch,
            threads=threads,
        )


def _counting(way: Callable[[], Pass], passes: dict[str, int], name: str) -> Callable[[], None]:
    one_pass = way()

    def step() -> None:
        passes[name] = one_pass()

    return step


def _rate(passes: dict[str, int], world: World, way: str, found: Row) -> Row:
    return {"images_per_s": world.world_size * passes[way] / found["seconds"]}


if __name__ == "__main__":
    run_stage(stream)
