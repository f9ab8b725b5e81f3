"""Images a second from a .rec to batches on the device, by where they are decoded.

Each is beside bare libjpeg-turbo on all cores, which is the limit where the CPU decodes.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.gpu.figures import Figures, Row, run_stage
from benchmarks.loader import bare_decoding, draw_set
from pipeline.dali import DaliMissingError
from pipeline.dali_decode import DecodeDevice
from pipeline.dali_loader import Loader, choose_threads
from pipeline.records.index import RecordIndex, open_index
from training.distributed import World

RECIPES = ("flip", "flip+adaface:0.5")
WAYS = {"cpu": ("cpu",)}  # by type of device; others decode on it or beside it
BATCH, WARM_UP, STEPS = 512, 30, 60  # of a rank; the first fill what is made ahead
REHEARSAL = (16, 2, 4)


def loader(figures: Figures) -> None:
    world = figures.world
    batch, warm_up, steps = REHEARSAL if figures.quick else (BATCH, WARM_UP, STEPS)
    drawn, records = (8, 200) if figures.quick else (500, 20_000)

    with tempfile.TemporaryDirectory() as folder:  # every rank draws for itself
        index = open_index(draw_set(Path(folder), drawn=drawn, records=records))

        def bare(*, decode: str) -> Row:
            return {"images_per_s": world.world_size * _bare_rate(index, world)}

        def measure(*, decode: DecodeDevice, augment: str) -> Row:
            try:
                made = Loader(
                    index,
                    global_batch=batch * world.world_size,
                    rank=world.rank,
                    world_size=world.world_size,
                    device=world.device,
                    decode=decode,
                    augment=augment.split("+"),
                    threads=choose_threads(world.local_world_size),
                )
            except DaliMissingError:
                return {"skipped": "it needs NVIDIA DALI"}
            rate = batch / _seconds_a_batch(made, world, warm_up=warm_up, steps=steps)
            found = {"images_per_s": world.world_size * rate, "how": str(made)}
            return found | {"of_bare": found["images_per_s"] / limit} if limit else found

        limit = figures.measure(bare, decode="bare libjpeg-turbo").get("images_per_s")
        for augment in RECIPES:
            for decode in WAYS.get(world.device.type, ("gpu", "hybrid")):
                figures.measure(measure, decode=decode, augment=augment)


def _bare_rate(index: RecordIndex, world: World) -> float:
    one_pass = bare_decoding(index, threads=choose_threads(world.local_world_size))
    begin = time.perf_counter()
    return one_pass() / (time.perf_counter() - begin)


def _seconds_a_batch(made: Loader, world: World, *, warm_up: int, steps: int) -> float:
    with closing(made.stream(0)) as stream:
        for _ in range(warm_up):
            next(stream)
        begin = time.perf_counter()
        for _ in range(steps):
            next(stream)
        if world.device.type != "cpu":
            torch.get_device_module(world.device).synchronize(world.device)
        return (time.perf_counter() - begin) / steps


if __name__ == "__main__":
    run_stage(loader)
