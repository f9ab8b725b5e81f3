"""What sets of millions of images cost before training starts, by the form that they lie in:

    python benchmarks/large_sets.py /a/disk/with/room --images 5800000

Of each form: the seconds of the first look, which makes the index, of the next opening, and from
there to the first batch, with those of the CPU; the memory that each of these processes took beyond
what it had when it began; the bytes that it had to fetch from the disk, since what was written just
before is mostly still in the memory; the sizes of the set and of the index. The content is small,
so that only the number counts: faces of one color, of 0.8 KB. In the folder every identity has a
file of its own, and its images are links to it; the tars are links to one of 10,000 images. Sets
are made one by one and removed once they are measured: 5,800,000 images take at most 6 GB at a
time.
Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, in_own_process, save, show
from pipeline.containers.open_records import open_records
from pipeline.containers.set_index import index_files
from pipeline.dali_loader import Loader
from synthetic import encode_jpeg

OF_A_PERSON = 68
OF_A_SHARD = 10_000
BATCH = 128
FACES = [encode_jpeg(np.full((112, 112, 3), shade, np.uint8)) for shade in range(64)]


def named(images: int) -> Iterator[tuple[str, bytes]]:
    """Paths that say who it is, people one after another."""
    faces = itertools.cycle(FACES)
    for number in range(images):
        yield f"{number // OF_A_PERSON:06d}/{number % OF_A_PERSON:03d}.jpg", next(faces)


def as_folder(path: Path, images: int) -> Path:
    for person in range(-(-images // OF_A_PERSON)):
        folder = f"{path}/{person:06d}"
        os.makedirs(folder)
        Path(f"{folder}/000.jpg").write_bytes(FACES[person % len(FACES)])
        for number in range(1, min(OF_A_PERSON, images - person * OF_A_PERSON)):
            os.link(f"{folder}/000.jpg", f"{folder}/{number:03d}.jpg")
    return path


def as_zip(path: Path, images: int) -> Path:
    """Stored members and a directory with 64 bits, as zip writes them."""
    sums = {face: zlib.crc32(face) for face in FACES}
    written, directory = path.with_suffix(".zip"), bytearray()
    with written.open("wb") as file:
        for name, face in named(images):
            about = struct.pack("<3H4I", 0, 0, 0, 0, sums[face], len(face), len(face))
            at, lengths = file.tell(), struct.pack("<2H", len(name), 0)
            file.write(b"PK\3\4\55\0" + about[:4] + about[6:] + lengths + name.encode() + face)
            far = struct.pack("<2HQ", 1, 8, at) if at >= 0xFFFFFFFF else b""
            directory += b"PK\1\2\55\3\55\0" + about[:4] + about[6:]
            directory += struct.pack("<5H2I", len(name), len(far), 0, 0, 0, 0, min(at, 0xFFFFFFFF))
            directory += name.encode() + far
        begin = file.tell()
        file.write(directory)
        end = file.tell()
        counts = images, images, len(directory), begin
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, *counts))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        file.write(b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2))
    return written


def as_lmdb(path: Path, images: int) -> Path:
    size = images * 4096 + (1 << 30)
    environment = lmdb.open(str(path), map_size=size, sync=False)
    with environment as opened, opened.begin(write=True) as writing:
        for name, face in named(images):
            writing.put(name.encode(), face, append=True)
    return path


def as_tars(path: Path, images: int) -> Path:
    path.mkdir()
    first = path / "00000.tar"
    with tarfile.open(first, "w") as tar:
        for number, (_, face) in enumerate(named(OF_A_SHARD)):
            for suffix, content in (("jpg", face), ("cls", b"%d" % (number // OF_A_PERSON))):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    for number in range(1, images // OF_A_SHARD):
        os.link(first, path / f"{number:05d}.tar")
    return path


def as_parquet(path: Path, images: int) -> Path:
    path.mkdir()
    faces = [face for _, face in named(OF_A_SHARD)]
    for first in range(0, images, OF_A_SHARD):
        labels = np.arange(first, min(first + OF_A_SHARD, images)) // OF_A_PERSON
        pq.write_table(
            pa.table({"image": faces[: len(labels)], "label": labels}),
            path / f"{first // OF_A_SHARD:05d}.parquet",
            row_group_size=100,
            compression="none",
            use_dictionary=False,  # the few faces here would be stored once
        )
    return path


FORMS = {
    "folder": as_folder,
    "zip": as_zip,
    "LMDB": as_lmdb,
    "tars": as_tars,
    "parquet": as_parquet,
}


def memory(field: str) -> int:
    """Bytes that this process has (VmRSS) or had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def fetched() -> int:
    """Bytes that this process had the disk read."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all in a folder; what is linked counts once."""
    return int(subprocess.check_output(["du", "-s", "--block-size=1", path]).split()[0])


def measured(path: str, *, batch: bool) -> dict[str, float]:
    """Of an opening in this process, and where wanted of the first batch."""
    before, read = memory("VmRSS"), fetched()
    begin, cpu = time.perf_counter(), time.process_time()
    index = open_records(path)
    found = {
        "images": len(index),
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "disk_bytes": fetched() - read,
    }
    if batch:
        begin = time.perf_counter()
        loader = Loader(index, global_batch=BATCH, device=torch.device("cpu"), augment=("flip",))
        next(loader.stream(loader.steps_per_epoch // 2))
        found["batch_seconds"] = time.perf_counter() - begin
    found["memory_bytes"] = memory("VmHWM") - before
    return found


def cost(form: str, path: Path) -> dict[str, float]:
    set_bytes = size_on_disk(path)
    first, again = (
        in_own_process(__file__, {"path": str(path), "batch": batch}, {}) for batch in (False, True)
    )
    print(f"{form}: {first} {again}")
    return {
        "images": first["images"],
        "set_bytes": set_bytes,
        "first_look_seconds": first["seconds"],
        "first_look_cpu_seconds": first["cpu_seconds"],
        "first_look_memory_bytes": first["memory_bytes"],
        "first_look_disk_bytes": first["disk_bytes"],
        "next_opening_seconds": again["seconds"],
        "next_opening_cpu_seconds": again["cpu_seconds"],
        "next_opening_memory_bytes": again["memory_bytes"],
        "next_opening_disk_bytes": again["disk_bytes"],
        "first_batch_seconds": again["batch_seconds"],
        "index_bytes": next(file for file in index_files(path) if file.is_file()).stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("place", type=Path, nargs="?", help="a folder on a disk with room")
    parser.add_argument("--images", type=int, default=5_800_000)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(**json.loads(arguments.one))))
        return
    if arguments.place is None:
        parser.error("expected a folder on a disk with room: the sets are written there")
    found = {}
    for form in arguments.forms:
        path = FORMS[form](arguments.place / form, arguments.images)
        found[form] = cost(form, path)
        for left in (path, *index_files(path)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    show(
        (
            "form",
            "first look, s",
            "of CPU",
            "GB",
            "next, s",
            "of CPU",
            "first batch, s",
            "index, MB",
        ),
        [
            (
                form,
                f"{one['first_look_seconds']:.1f}",
                f"{one['first_look_cpu_seconds']:.1f}",
                f"{one['first_look_memory_bytes'] / 1e9:.2f}",
                f"{one['next_opening_seconds']:.2f}",
                f"{one['next_opening_cpu_seconds']:.2f}",
                f"{one['first_batch_seconds']:.2f}",
                f"{one['index_bytes'] / 1e6:.0f}",
            )
            for form, one in found.items()
        ],
        title=f"{arguments.images:,} images",
    )
    save("large_sets", about_cpu() | {"of_a_person": OF_A_PERSON, "batch": BATCH}, forms=found)


if __name__ == "__main__":
    main()
