"""Images a second from .rec to tensors, stage by stage and against other ways:

    python benchmarks/loader.py [--rec train.rec]

Without --rec, synthetic faces are drawn once into a temporary folder, 2,000 of them, and repeated
to 20,000 records. Every way hands over batches of 128 with labels, shuffled, for a whole pass over
the records; they take turns, and medians count. "Bare decoding" is libjpeg-turbo in two threads and
nothing else: the physical limit that the others are measured by. The others: DALI's own reader with
decode and normalization to float, as arcface_torch's graph has them, on an index of images only;
and a torch DataLoader with two workers that decodes with Pillow and normalizes in torch. Results go
to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, medians, save, show, take_turns
from pipeline import dali
from pipeline.collection import Collection
from pipeline.dali_loader import Loader
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.recordio import RecordWriter, pack_image
from synthetic import encode_jpeg, render

THREADS, BATCH, SIZE = 2, 128, 112
RECORDS, DRAWN = 20_000, 2_000

# Consumes one pass; returns how many images it was given.
Pass = Callable[[], int]


def draw_set(folder: Path, *, drawn: int = DRAWN, records: int = RECORDS) -> Path:
    """A .rec of synthetic faces, `drawn` different ones, repeated."""
    rec = folder / "train.rec"
    jobs = [(k // 10, k % 10) for k in range(drawn)]
    faces = [encode_jpeg(render(*job, seed=0)) for job in jobs]
    with RecordWriter(rec) as writer:
        for number, face in enumerate(itertools.islice(itertools.cycle(faces), records)):
            writer.write(pack_image(face, float(number % drawn // 10), number))
    return rec


def bare_decoding(index: RecordIndex, *, threads: int = THREADS) -> Pass:
    """libjpeg-turbo on threads, into memory that is there."""
    encoded = [bytes(index.image(i)) for i in range(len(index))]

    def decode(part: int) -> int:
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        for image in encoded[part::threads]:
            simplejpeg.decode_jpeg(image, buffer=out)
        return len(encoded[part::threads])

    def one_pass() -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(decode, range(threads)))

    return one_pass


def reading(index: RecordIndex) -> Pass:
    """Every image's bytes in a drawn order, by one thread, and the labels."""
    collection = Collection.of(index)

    def one_pass() -> int:
        order = np.random.default_rng(0).permutation(len(index))
        bytes_read = sum(len(source()) for source in collection.sources(order))
        collection.labels(order)
        assert bytes_read > 0
        return len(index)

    return one_pass


def ours(index: RecordIndex, *augment: str, **settings: Any) -> Pass:
    """The trainer's stream: uint8 batches, channels_last, and labels; `settings` of its Loader."""
    usual: dict[str, Any] = {
        "global_batch": BATCH,
        "device": torch.device("cpu"),
        "threads": THREADS,
        "image_size": SIZE,
    }
    loader = Loader(index, augment=augment, **(usual | settings))
    stream = loader.stream(0)

    def one_pass() -> int:
        return sum(len(next(stream).labels) for _ in range(loader.steps_per_epoch))

    return one_pass


def dali_reader(index: RecordIndex) -> Pass:
    """readers.mxnet, decode, mirror, normalize to float."""
    listing = index.path.with_suffix(".images.idx")
    lines = (f"{i}\t{offset}\n" for i, offset in enumerate(index.records["offset"].tolist()))
    listing.write_text("".join(lines))
    pipeline = dali.Pipeline(
        batch_size=BATCH, num_threads=THREADS, device_id=None, prefetch_queue_depth=2
    )
    with pipeline:
        encoded, labels = dali.fn.readers.mxnet(
            path=str(index.path), index_path=str(listing), random_shuffle=True, initial_fill=1024
        )
        images = dali.fn.decoders.image(encoded, device="cpu", output_type=dali.types.RGB)
        images = dali.fn.crop_mirror_normalize(
            images,
            dtype=dali.types.FLOAT,
            mean=[127.5] * 3,
            std=[127.5] * 3,
            mirror=dali.fn.random.coin_flip(),
        )
        pipeline.set_outputs(images, labels)
    pipeline.build()

    def one_pass() -> int:
        steps = len(index) // BATCH
        for _ in range(steps):
            images, labels = pipeline.run()
            torch.from_numpy(np.asarray(images.as_tensor()))
            torch.from_numpy(np.asarray(labels.as_tensor()))
        return steps * BATCH

    return one_pass


class PillowSet(Dataset):
    """A map-style set that decodes with Pillow and normalizes in torch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index: RecordIndex | None = None
        self._length = len(open_index(path))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if self._index is None:  # each worker maps the file itself
            self._index = open_index(self._path)
        pixels = np.array(Image.open(io.BytesIO(self._index.image(i))).convert("RGB"))
        if torch.rand(()) < 0.5:
            pixels = pixels[:, ::-1].copy()
        image = torch.from_numpy(pixels).permute(2, 0, 1).float().sub_(127.5).div_(127.5)
        return image, int(self._index.records["label"][i])


def torch_batches(index: RecordIndex, *, batch: int = BATCH) -> DataLoader:
    """Shuffled batches from two worker processes: (B, 3, H, W) float32 and labels."""
    return DataLoader(
        PillowSet(index.path),
        batch_size=batch,
        shuffle=True,
        num_workers=THREADS,
        drop_last=True,
        persistent_workers=True,
    )


def torch_loader(index: RecordIndex) -> Pass:
    """A torch DataLoader."""
    loader = torch_batches(index)

    def one_pass() -> int:
        return sum(len(labels) for _, labels in loader)

    return one_pass


def measure(ways: dict[str, Pass], rounds: int) -> dict[str, float]:
    """Median images a second of each, taken in turn."""
    images: dict[str, int] = {}

    def counted(name: str) -> None:
        images[name] = ways[name]()  # every pass of a way gives as many

    turns = {name: partial(counted, name) for name in ways}
    seconds = medians(take_turns(turns, rounds=rounds))
    return {name: images[name] / taken for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--rec", type=Path, help="a .rec of 112×112 images")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with opened(arguments.rec) as rec:
        index = open_index(rec)
        ways = {
            "bare decoding": bare_decoding(index),
            "reading": reading(index),
            "ours, decoded": ours(index),
            "ours, flip": ours(index, "flip"),
            "ours, arcface": ours(index, "flip", "arcface"),
            "DALI's reader to float": dali_reader(index),
            "torch DataLoader, Pillow": torch_loader(index),
        }
        rates = measure(ways, arguments.rounds)
        mean_bytes = float(index.records["length"].mean())
    _print(rates)
    about = {"batch": BATCH, "threads": THREADS, "records": len(index), "mean_bytes": mean_bytes}
    save("loader", about_cpu() | about, images_per_s=rates)


@contextmanager
def opened(rec: Path | None) -> Iterator[Path]:
    """The .rec that was named, or a drawn one in a folder that goes away."""
    if rec:
        yield rec
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"drawing {DRAWN} faces", flush=True)
        yield draw_set(Path(folder))


def _print(rates: dict[str, float]) -> None:
    bare = rates["bare decoding"]
    show(
        ("way", "images/s", "of bare decoding"),
        [(name, f"{rate:,.0f}", f"{rate / bare:.2f}") for name, rate in rates.items()],
        title=f"{THREADS} threads, batches of {BATCH}",
    )


if __name__ == "__main__":
    main()
