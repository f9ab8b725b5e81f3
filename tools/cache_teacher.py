"""Write a teacher's embeddings beside the index, for distill.cached=true:

    python tools/cache_teacher.py CONFIG [key=value ...]

The teacher is CONFIG's distill.teacher, the images are all those of data.train, without
augmentation. An interrupted run is gone on from; a finished cache is kept. It takes 2 bytes × D for
an image: 6 GB for 5.8 million of 512.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.embedding import decoder, embed_batches
from facestream import UserError
from pipeline.ahead import cores
from pipeline.records.index import RecordIndex
from training.command import command, whole_number
from training.config import Config, load_config
from training.data import open_training_data
from training.distill.embedding_cache import EmbeddingCacheError, open_embeddings, write_embeddings
from training.distill.teacher import Teacher, load_teacher, name_teacher
from training.distributed import World, joined_world
from training.planning.out_of_memory import memory_explained
from training.step.precision import choose_precision


def cache_teacher(config: Config, world: World, *, batch: int) -> list[Path]:
    """Write what is missing; returns the caches written. Raises UserError for what cannot be."""
    if not config.distill.teacher:
        raise UserError("distill.teacher='': expected a teacher whose embeddings to write")
    data = open_training_data(config, world)
    precision = choose_precision(world.device, config.step.precision)
    teacher = load_teacher(config, device=world.device, precision=precision)
    print(f"teacher       {name_teacher(config)}, given {config.teacher_input}")
    written = []
    for index in data.records.indexes:
        try:
            open_embeddings(index, teacher=teacher.fingerprint)
        except EmbeddingCacheError:
            written.append(_write(index, teacher, config=config, world=world, batch=batch))
        else:
            print(f"kept          {index.path} has its embeddings of {teacher.fingerprint}")
    return written


def _write(
    index: RecordIndex, teacher: Teacher, *, config: Config, world: World, batch: int
) -> Path:
    faults: dict[int, str] = {}

    def rows_from(done: int) -> Iterator[np.ndarray]:
        for part in embed_batches(
            teacher.embed,
            decoder(
                lambda places: index.sources(np.arange(places.start, places.stop)),
                image_size=config.data.image_size,
            ),
            range(done, len(index)),
            device=world.device,
            batch_size=batch,
            image_size=config.data.image_size,
            threads=cores(),
            progress=index.path.name,
        ):
            faults.update(part.faults)
            yield part.embeddings.cpu().numpy()

    path = write_embeddings(
        index, rows_from, teacher=teacher.fingerprint, embedding_dim=teacher.embedding_dim
    )
    print(f"wrote         {path}: {len(index)} embeddings of {teacher.embedding_dim}")
    for record, fault in list(faults.items())[:8]:
        print(f"              record {record} {fault}")
    if faults:
        print(f"              {len(faults)} of these images are bad: their embeddings are zeros")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("config", type=Path, help="a configuration file with distill.teacher")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="as for train_dist.py"
    )
    parser.add_argument(
        "--batch", type=whole_number(1, 1 << 16), default=256, help="images at a time (default 256)"
    )
    arguments = parser.parse_intermixed_args()
    with command("cache_teacher"):
        config = load_config(arguments.config, arguments.overrides)
        with joined_world(config.run.device) as world, memory_explained(config, world):
            cache_teacher(config, world, batch=arguments.batch)


if __name__ == "__main__":
    main()
