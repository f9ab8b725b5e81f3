"""The DALI graph, and the stream of batches the trainer sees.

Our own memory-mapped reader feeds DALI's `external_source` with views of the file, because DALI's
reader shuffles in a local buffer and cannot resume into another world size. Images leave as uint8
(B, H, W, 3) and are handed out as (B, 3, H, W), which is channels_last without a copy.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipeline.ahead import cores, map_ahead
from pipeline.augment import Augmentation, Draw
from pipeline.collection import Collection
from pipeline.index import RecordIndex
from pipeline.jpeg import Decoder
from pipeline.order import GlobalOrder, Order, rank_positions, steps_per_epoch
from pipeline.recordio import RecordError

DecodeDevice = Literal["gpu", "hybrid", "cpu"]
PREFETCH = 2  # batches: one is made while another is used

_log = logging.getLogger("facestream.pipeline")


class Batch(NamedTuple):
    """What one step of one rank gets."""

    images: torch.Tensor  # (B, 3, H, W) uint8, channels_last, on the loader's device
    labels: torch.Tensor  # (B,) int64, on the loader's device


def choose_decode_device(device: torch.device) -> tuple[DecodeDevice, str]:
    """Where to decode for a compute device, and why, in words for the log."""
    if device.type == "cpu":
        return "cpu", "there is no GPU"
    major, minor = torch.get_device_module(device).get_device_capability(device)
    name = f"compute capability {major}.{minor}"
    if (major, minor) in ((8, 0), (9, 0), (10, 0)):  # A100, H100, B200
        return "gpu", f"{name} is known to have a JPEG engine"
    return "hybrid", f"{name} is not known to have a JPEG engine: only augment on the GPU"


def choose_threads(local_world_size: int) -> int:
    """CPU threads for one rank's DALI pipeline: its share of the cores we may run on."""
    return max(1, cores() // local_world_size)


class Loader:
    """One rank's batches of a collection: disjoint from the other ranks', the same at any time.

    Args:
        records: the images.
        global_batch: samples in a step over all ranks; must be a multiple of `world_size`.
        rank, world_size: whose share this is.
        seed: of the augmentation, and of the order where none is given.
        order: which record at which position of which epoch; a permutation of all by default.
        epoch_records: positions of an epoch, by default as many as there are records.
        device: where the batches go.
        decode: where JPEGs are decoded and augmented; see `choose_decode_device`.
        augment: recipes of `pipeline.augment`, in order; "name:0.3" for 30 % of the images.
        image_size: pixels; every image must be (image_size, image_size).
        threads: CPU threads for DALI.
        max_bad_fraction: of the images that may turn out undecodable before that is an error.
    """

    def __init__(
        self,
        records: Collection | RecordIndex,
        *,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        order: Order | None = None,
        epoch_records: int | None = None,
        device: torch.device,
        decode: DecodeDevice = "cpu",
        augment: Sequence[str] = (),
        image_size: int = 112,
        threads: int = 1,
        max_bad_fraction: float = 0.001,
    ) -> None:
        if device.type == "cpu" and decode != "cpu":
            raise ValueError(f"data.decode={decode}: there is no GPU here, expected cpu or auto")
        if isinstance(records, RecordIndex):
            records = Collection.of(records)
        epoch_records = epoch_records or len(records)
        self.steps_per_epoch = steps_per_epoch(epoch_records, global_batch)
        self.dropped = epoch_records - self.steps_per_epoch * global_batch
        self.bad: dict[int, str] = {}  # record number → what is wrong with it
        self._collection, self._global_batch = records, global_batch
        self._order = order or GlobalOrder(len(records), seed=seed)
        self._rank, self._world_size, self._seed = rank, world_size, seed
        self._device, self._decode, self._threads = device, decode, threads
        self._augmentation = Augmentation(augment)
        self._image_size = image_size
        self._max_bad = max_bad_fraction * len(records)
        self._batch = len(self._positions(0))
        self._bad_lock = threading.Lock()
        self._decoder = None if decode == "gpu" else Decoder(image_size, threads=threads)

    def stream(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """Batches without end from `step` of `epoch` on, running through the epochs' ends."""
        at = epoch * self.steps_per_epoch + step
        while True:
            begin = at
            # Two workers: one collects and draws while the other waits for the decoder's threads.
            steps = itertools.count(begin)
            source = _Source(map_ahead(self._inputs, steps, workers=2, depth=PREFETCH + 1))
            graph = self._graph(source)
            try:
                while True:
                    images, labels = graph.run()
                    batch = self._hand_over(images, labels)
                    at += 1
                    yield batch
            except RuntimeError as error:  # DALI's pipelines are dead once they have thrown
                self._quarantine(range(at, begin + source.taken), error)
            finally:
                source.close()

    def close(self) -> None:
        """Let the decoding threads go; close the streams first."""
        if self._decoder:
            self._decoder.close()

    def _positions(self, step: int) -> np.ndarray:
        return rank_positions(
            step * self._global_batch,
            global_batch=self._global_batch,
            rank=self._rank,
            world_size=self._world_size,
        )

    def _records(self, at: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Records, positions and epoch of this rank's batch at global step `at`."""
        epoch, step = divmod(at, self.steps_per_epoch)
        position = self._positions(step)
        records = self._order(position, epoch)
        self._replace_bad(records)
        return records, position, epoch

    def _replace_bad(self, records: np.ndarray) -> None:
        """Put the next good record in the place of each (N,) that is known to be bad."""
        with self._bad_lock:
            # Where none is good, whoever found that out raises.
            some = 0 < len(self.bad) < len(self._collection)
            for i in np.flatnonzero(np.isin(records, list(self.bad))) if some else ():
                while int(records[i]) in self.bad:
                    records[i] = (records[i] + 1) % len(self._collection)

    def _inputs(self, at: int) -> tuple:
        """What the graph takes for this rank's batch at global step `at`; called on threads."""
        for index in self._collection.indexes:
            index.check_unchanged()
        records, position, epoch = self._records(at)
        images = self._read(records)
        draw = Draw(position, seed=self._seed, epoch=epoch, size=self._image_size)
        return images, self._collection.labels(records), *self._augmentation.arrays(draw)

    def _read(self, records: np.ndarray) -> list[np.ndarray] | np.ndarray:
        """Images of (B,) records: encoded ones where DALI decodes, else (B, H, W, 3) uint8.

        Where an image turns out bad, its record is replaced, in `records` too.
        """
        encoded = [self._collection.image(i) for i in records]
        if self._decoder is None:
            return encoded
        images, faults = self._decoder(encoded)
        while faults:
            self._exclude({int(records[i]): fault for i, fault in faults.items()})
            again = np.array(sorted(faults))
            replaced = records[again]
            self._replace_bad(replaced)
            records[again] = replaced
            images[again], found = self._decoder([self._collection.image(i) for i in replaced])
            faults = {int(again[k]): fault for k, fault in found.items()}
        return images

    def _graph(self, source: Callable[[], tuple]) -> Pipeline:
        arguments = self._augmentation.argument_types

        @pipeline_def(enable_conditionals=True)  # the recipes' branches
        def graph() -> tuple:
            images, labels, *nodes = fn.external_source(
                source=source,
                num_outputs=2 + len(arguments),
                batch=True,
                dtype=[types.UINT8, types.INT64, *(dtype for dtype, _ in arguments)],
                ndim=[1 if self._decoder is None else 3, 0, *(ndim for _, ndim in arguments)],
                layout=["" if self._decoder is None else "HWC", *[""] * (1 + len(arguments))],
            )
            if self._decode == "gpu":
                images = _decoded(images, "gpu")
            elif self._decode == "hybrid":
                images = images.gpu()
            images = self._augmentation(images, nodes)
            if self._device.type != "cpu":
                images, labels = images.gpu(), labels.gpu()
            return images, labels

        pipeline = graph(**_pipeline_settings(self._batch, self._threads, self._device))
        pipeline.build()
        return pipeline

    def _hand_over(self, images: object, labels: object) -> Batch:
        batch = Batch(_channels_last(images), torch.from_dlpack(labels.as_tensor()))
        _require_size(batch.images, self._image_size)
        return batch

    def _quarantine(self, steps: range, error: RuntimeError) -> None:
        """Find out which records of these steps broke the pipeline; re-raise if none did."""
        found = {}
        for at in steps:
            records = [int(i) for i in self._records(at)[0]]
            faults = find_faults([self._collection.image(i) for i in records], self._image_size)
            found |= {records[i]: fault for i, fault in faults.items()}
        if not found:
            raise error
        self._exclude(found, error)

    def _exclude(self, found: dict[int, str], error: RuntimeError | None = None) -> None:
        """Count records as bad, and say so; RecordError where that makes too many."""
        with self._bad_lock:
            new = {record: fault for record, fault in found.items() if record not in self.bad}
            self.bad |= new
            count = len(self.bad)
        # On two threads, each must raise: the other's batch would be looked for forever.
        if count > self._max_bad or count == len(self._collection):
            record, fault = next(iter((new or found).items()))
            raise RecordError(
                f"{self._collection.describe(record)} {fault}. That makes {count} bad images of "
                f"{len(self._collection)}: pack the set again without them, or raise "
                "data.max_bad_fraction"
            ) from error
        for record, fault in new.items():
            _log.warning(
                "%s %s: the next good one takes its place", self._collection.describe(record), fault
            )


class _Source:
    """What DALI calls for its inputs; `taken` batches of them so far, ahead of what it gave."""

    def __init__(self, prepared: Generator[tuple, None, None]) -> None:
        self._prepared, self.taken = prepared, 0

    def __call__(self) -> tuple:
        self.taken += 1
        return next(self._prepared)

    def close(self) -> None:
        self._prepared.close()


def decode_images(
    encoded: Sequence[bytes],
    *,
    batch_size: int,
    device: torch.device,
    image_size: int = 112,
    threads: int = 1,
) -> Iterator[torch.Tensor]:
    """Decode images in order, as training does: yields (b, 3, H, W) uint8 channels_last tensors.

    The last batch may be smaller. Raises ValueError naming the images that cannot be decoded or
    are not (image_size, image_size).
    """
    if not encoded:
        return
    decode, _ = choose_decode_device(device)
    starts = range(0, len(encoded), batch_size)
    batches = iter([encoded[at : at + batch_size] for at in starts])
    pipeline = Pipeline(**_pipeline_settings(min(batch_size, len(encoded)), threads, device))
    with pipeline:
        inputs = fn.external_source(
            source=lambda: [np.frombuffer(image, np.uint8) for image in next(batches)],
            batch=True,
            dtype=types.UINT8,
            ndim=1,
        )
        pipeline.set_outputs(_decoded(inputs, decode))
    pipeline.build()
    try:
        for _ in starts:
            images = _channels_last(pipeline.run()[0])
            _require_size(images, image_size)
            yield images
    except RuntimeError as error:
        faults = find_faults(encoded, image_size)
        if not faults:
            raise
        listed = "; ".join(f"image {i} {fault}" for i, fault in list(faults.items())[:5])
        raise ValueError(f"{len(faults)} of {len(encoded)} images: {listed}") from error


def find_faults(encoded: Sequence[bytes | np.ndarray], image_size: int) -> dict[int, str]:
    """Decode one by one, on the CPU: what is wrong with which of these images."""
    faults: dict[int, str] = {}
    expected = (image_size, image_size, 3)
    waiting = list(range(len(encoded)))
    while waiting:
        queue = iter(list(waiting))
        pipeline = Pipeline(**_pipeline_settings(1, 1, torch.device("cpu"), prefetch=1))
        with pipeline:
            inputs = fn.external_source(
                source=lambda: [np.frombuffer(encoded[next(queue)], np.uint8)],  # noqa: B023
                batch=True,
                dtype=types.UINT8,
                ndim=1,
            )
            pipeline.set_outputs(_decoded(inputs, "cpu"))
        pipeline.build()
        try:
            while waiting:
                shape = pipeline.run()[0].shape()[0]
                i = waiting.pop(0)
                if tuple(shape) != expected:
                    faults[i] = f"is {shape[1]}×{shape[0]}, not {image_size}×{image_size} pixels"
        except RuntimeError:
            start = bytes(encoded[waiting[0]][:4]).hex(" ")
            faults[waiting.pop(0)] = f"cannot be decoded (it starts with {start})"
    return faults


def _require_size(images: torch.Tensor, image_size: int) -> None:
    """As DALI does for images of several sizes; `find_faults` then says which."""
    if images.shape[2:] != (image_size, image_size):
        raise RuntimeError(f"images of shape {tuple(images.shape)}")


def _pipeline_settings(
    batch_size: int, threads: int, device: torch.device, prefetch: int = PREFETCH
) -> dict[str, Any]:
    on_gpu = device.type != "cpu"
    return {
        "batch_size": batch_size,
        "num_threads": threads,
        "device_id": (device.index or 0) if on_gpu else None,
        "prefetch_queue_depth": prefetch,
        "exec_dynamic": True,  # outputs may outlive the next run, so they are handed over uncopied
    }


def _decoded(encoded: object, decode: DecodeDevice) -> object:
    where = "mixed" if decode == "gpu" else "cpu"
    images = fn.decoders.image(encoded, device=where, output_type=types.RGB)
    return images.gpu() if decode == "hybrid" else images


def _channels_last(images: object) -> torch.Tensor:
    """DALI's (B, H, W, 3) as torch's (B, 3, H, W) in channels_last: the same bytes."""
    return torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)
