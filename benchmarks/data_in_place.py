"""Images a second of sets as they lie, beside the .rec of the same faces:

    python benchmarks/data_in_place.py

Faces are drawn once, 2,000 of them, and repeated to 10,000; each form has its own copy, on a disk
whose cache is warm after the first pass. Every form hands over batches of 128 with the flip, all of
them once, in the default order; they take turns, and medians count. "compressed parquet" is what
pyarrow writes by default (snappy), in row groups of 100, in block order as docs/data.md advises.
Beside each: the seconds of the first look, which makes the index, and of the next opening. Results
go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, save, show
from benchmarks.loader import measure
from pipeline.containers.open_records import open_records
from pipeline.dali_loader import Loader
from pipeline.order import BlockOrder
from pipeline.records.index import RecordIndex
from pipeline.records.write_set import pack_set
from synthetic import encode_jpeg, render

IMAGES, DRAWN, OF_A_PERSON = 10_000, 2_000, 10
THREADS, BATCH = 2, 128
BLOCK, WINDOW = 256, 8  # of the compressed parquet's order


def draw() -> list[tuple[int, bytes]]:
    """(person, JPEG) of every image, people one after another."""
    faces = [encode_jpeg(render(*divmod(k, OF_A_PERSON), seed=0)) for k in range(DRAWN)]
    chosen = itertools.islice(itertools.cycle(faces), IMAGES)
    return [(number // OF_A_PERSON, face) for number, face in enumerate(chosen)]


def named(images: list[tuple[int, bytes]]) -> Iterator[tuple[str, bytes]]:
    """By paths that say who it is."""
    for number, (person, image) in enumerate(images):
        yield f"{person:06d}/{number}.jpg", image


def as_rec(path: Path, images: list[tuple[int, bytes]]) -> Path:
    people = itertools.groupby(images, key=lambda one: one[0])
    pack_set(path, ([image for _, image in group] for _, group in people))
    return path


def as_folder(path: Path, images: list[tuple[int, bytes]]) -> Path:
    for name, image in named(images):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(image)
    return path


def as_zip(path: Path, images: list[tuple[int, bytes]]) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as opened:
        for name, image in named(images):
            opened.writestr(name, image)
    return path.with_suffix(".zip")


def as_lmdb(path: Path, images: list[tuple[int, bytes]]) -> Path:
    with lmdb.open(str(path), map_size=1 << 30) as opened, opened.begin(write=True) as writing:
        for name, image in named(images):
            writing.put(name.encode(), image)
    return path


def as_tars(path: Path, images: list[tuple[int, bytes]]) -> Path:
    path.mkdir()
    for shard, begin in enumerate(range(0, len(images), 1000)):
        with tarfile.open(path / f"{shard}.tar", "w") as tar:
            for number, (person, image) in enumerate(images[begin : begin + 1000], start=begin):
                for suffix, content in (("jpg", image), ("cls", b"%d" % person)):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
    return path


def as_parquet(path: Path, images: list[tuple[int, bytes]], compression: str = "none") -> Path:
    columns = {
        "image": [{"bytes": image, "path": None} for _, image in images],
        "label": [person for person, _ in images],
    }
    file = path.with_suffix(".parquet")
    pq.write_table(pa.table(columns), file, row_group_size=100, compression=compression)
    return file


def as_compressed_parquet(path: Path, images: list[tuple[int, bytes]]) -> Path:
    return as_parquet(path, images, "snappy")


FORMS = {
    ".rec": as_rec,
    "folder": as_folder,
    "zip, deflated": as_zip,
    "LMDB": as_lmdb,
    "tars": as_tars,
    "parquet": as_parquet,
    "compressed parquet, block order": as_compressed_parquet,
}


def one_pass(index: RecordIndex, *, block: bool) -> Callable[[], int]:
    """The trainer's stream, once through all."""
    order = BlockOrder(len(index), seed=0, block=BLOCK, window=WINDOW) if block else None
    loader = Loader(
        index,
        global_batch=BATCH,
        device=torch.device("cpu"),
        order=order,
        augment=("flip",),
        threads=THREADS,
    )
    stream = loader.stream(0)
    return lambda: sum(len(next(stream).labels) for _ in range(loader.steps_per_epoch))


def timed(path: Path) -> tuple[RecordIndex, float]:
    """A set and the seconds of its opening."""
    begin = time.perf_counter()
    index = open_records(path)
    return index, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    images = draw()
    with tempfile.TemporaryDirectory() as folder:
        ways, first, again = {}, {}, {}
        for number, (form, write) in enumerate(FORMS.items()):
            path = write(Path(folder) / str(number), images)
            _, first[form] = timed(path)
            index, again[form] = timed(path)
            ways[form] = one_pass(index, block="block" in form)
        rates = measure(ways, arguments.rounds)
    show(
        ("form", "images/s", "of .rec", "first look, s", "next opening, s"),
        [
            (
                form,
                f"{rate:,.0f}",
                f"{rate / rates['.rec']:.2f}",
                f"{first[form]:.2f}",
                f"{again[form]:.3f}",
            )
            for form, rate in rates.items()
        ],
        title=f"{IMAGES:,} images, {THREADS} threads, batches of {BATCH}",
    )
    about = {"batch": BATCH, "threads": THREADS, "records": IMAGES, "rounds": arguments.rounds}
    about["mean_bytes"] = sum(len(image) for _, image in images) / IMAGES
    found = {"images_per_s": rates, "first_look_s": first, "next_opening_s": again}
    save("data_in_place", about_cpu() | about, **found)


if __name__ == "__main__":
    main()
