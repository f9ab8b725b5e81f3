"""The stream of batches the trainer sees.

Our own reader feeds DALI's `external_source`, because DALI's reader shuffles in a local buffer and
cannot resume into another world size. Images leave as uint8 (B, H, W, 3) and are handed out as
(B, 3, H, W), which is channels_last without a copy. On a CPU they are decoded and mirrored on
threads, and where no other recipe is asked for, DALI would only copy them and is left out; on a GPU
too where it is not installed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

from facestream import UserError
from pipeline import dali
from pipeline.ahead import cores, map_ahead
from pipeline.augment import Augmentation, Draw
from pipeline.bad_records import BadRecords
from pipeline.collection import Collection
from pipeline.dali_decode import (
    PREFETCH,
    DecodeDevice,
    channels_last,
    decoded,
    find_faults,
    pipeline_settings,
    require_size,
)
from pipeline.jpeg import decode_batch
from pipeline.order import GlobalOrder, Order, rank_positions, steps_per_epoch
from pipeline.read_ahead import read_ahead
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError
from pipeline.side_columns import SideColumns

_STAGE = 16  # steps at least that are announced to the disk at once


class Batch(NamedTuple):
    """What one step of one rank gets."""

    images: torch.Tensor  # (B, 3, H, W) uint8, channels_last, on the loader's device
    labels: torch.Tensor  # (B,) int64, on the loader's device
    records: np.ndarray  # (B,) int64: numbers of the collection's records, on the host
    columns: torch.Tensor | None = None  # (B, k) float32: what was asked for beside the labels


# Records and columns of a batch.
_Beside = tuple[np.ndarray, np.ndarray | None]


class _Inputs(NamedTuple):
    """A batch before the graph: read and drawn, decoded too where that is done on the CPU."""

    images: np.ndarray | list[np.ndarray]  # (B, H, W, 3) uint8, or encoded
    labels: np.ndarray  # (B,) int64
    records: np.ndarray  # (B,) int64
    columns: np.ndarray | None  # (B, k) float32
    arguments: list  # of the recipes, in the graph's order


def choose_threads(local_world_size: int) -> int:
    """Threads that decode and augment for one rank: its share of the cores we may run on."""
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
        columns: of the records, for recipes; a batch hands over those that `handed` names.
        threads: that decode, and as many of DALI's.
        max_bad_fraction: of the images that may turn out undecodable before that is an error.

    Raises:
        DaliMissingError: a UserError, where DALI is needed and cannot be imported.
        ColumnsError: a UserError, where a recipe or `handed` wants a column that is not there.
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
        columns: SideColumns | None = None,
        handed: Sequence[str] = (),
        image_size: int = 112,
        threads: int = 1,
        max_bad_fraction: float = 0.001,
    ) -> None:
        if device.type == "cpu" and decode != "cpu":
            raise UserError(f"decode={decode}: device={device} is no GPU, expected decode=cpu")
        if isinstance(records, RecordIndex):
            records = Collection.of(records)
        epoch_records = epoch_records or len(records)
        self.steps_per_epoch = steps_per_epoch(epoch_records, global_batch)
        self.dropped = epoch_records - self.steps_per_epoch * global_batch
        self._collection, self._global_batch = records, global_batch
        self._order = order or GlobalOrder(len(records), seed=seed)
        self._rank, self._world_size, self._seed = rank, world_size, seed
        self._device, self.decode, self.threads = device, decode, threads
        self._augmentation = Augmentation(augment, mirrored_before=decode != "gpu")
        self._columns, self._handed = columns, tuple(handed)
        given = columns or SideColumns({}, ())
        for recipe, needed in self._augmentation.needs.items():
            given.require(needed, reader=f"the recipe {recipe}")
        given.require(self._handed, reader="the head")
        given.require_size(image_size)
        if self.uses_dali:
            dali.require()
        self._image_size = image_size
        # Where DALI decodes, two threads: one collects while the other waits for the disk.
        self._workers = 2 if decode == "gpu" else threads
        self._ahead = self._workers + PREFETCH
        self._bad = BadRecords(records, max_fraction=max_bad_fraction)
        self._batch = len(self._positions(np.zeros(1, np.int64)))
        # Positions that are announced to the disk together: multiples of the order's locality.
        wanted = _STAGE * global_batch
        self._stage = -(-wanted // self._order.locality) * self._order.locality
        self._epoch_stages = -(-self.steps_per_epoch * global_batch // self._stage)

    @property
    def uses_dali(self) -> bool:
        """Whether there is anything left for DALI to do."""
        wanted = self.decode == "gpu" or self._augmentation.needs_graph
        return wanted or (self._device.type != "cpu" and dali.is_installed())

    def __str__(self) -> str:
        """How batches are made, for the log."""
        dali = "DALI augments" if self._augmentation.needs_graph else "DALI hands over"
        return (
            f"{self.decode}, {self.threads} thread{'s' * (self.threads > 1)}, "
            f"{self._ahead} batches ahead, "
            f"{dali if self.uses_dali else 'without DALI'}"
        )

    def stream(self, epoch: int, step: int = 0) -> Generator[Batch, None, None]:
        """Batches without end from `step` of `epoch` on, running through the epochs' ends.

        Close it to end its threads. Raises RecordError for files that are cut off, gone or cannot
        be read on the way, and where more images are bad than may be.
        """
        batches = self._through_dali if self.uses_dali else self._from_threads
        return batches(epoch * self.steps_per_epoch + step)

    def global_labels(self, at: int) -> torch.Tensor:
        """(G,) int64 labels of all ranks' batches in global step `at`, counted through the epochs.

        In the order of the ranks, on the host. Images that turn out bad later, or have on other
        ranks, are not taken into account.
        """
        epoch, step = divmod(at, self.steps_per_epoch)
        first = step * self._global_batch
        records = self._order(np.arange(first, first + self._global_batch), epoch)
        self._bad.replace(records)
        return torch.from_numpy(self._collection.labels(records))

    def _from_threads(self, first: int) -> Generator[Batch, None, None]:
        with closing(self._prepared(first)) as prepared:
            for inputs in prepared:
                assert isinstance(inputs.images, np.ndarray), "decoded"
                images, labels = map(self._on_device, (inputs.images, inputs.labels))
                columns = None if inputs.columns is None else self._on_device(inputs.columns)
                yield Batch(images.permute(0, 3, 1, 2), labels, inputs.records, columns)

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _through_dali(self, first: int) -> Generator[Batch, None, None]:
        at, in_use = first, _InUse(self._device)
        while True:
            with closing(_Source(self._prepared(at), first=at)) as source:
                graph = self._graph(source)
                while True:
                    try:
                        batch = self._hand_over(graph.run(), source.beside.popleft)
                    except RuntimeError as error:
                        if self.decode != "gpu":  # else all images were decoded before
                            raise
                        self._quarantine(range(at, source.taken), error)
                        break  # DALI's pipelines are dead once they have thrown
                    at += 1
                    yield batch
                    in_use.keep(batch)

    def _prepared(self, first: int) -> Generator[_Inputs, None, None]:
        """Inputs of the global steps from `first` on, made on threads ahead of need."""
        steps = read_ahead(
            itertools.count(first),
            stage_of=self._stage_of,
            records_of=self._records_of,
            soon=self._records_soon,
            collection=self._collection,
        )
        with closing(steps):
            yield from map_ahead(self._inputs, steps, workers=self._workers, depth=self._ahead)

    def _positions(self, steps: np.ndarray) -> np.ndarray:
        """(n,) steps of an epoch to the (n · B,) positions that this rank takes in them."""
        of_first = rank_positions(
            0, global_batch=self._global_batch, rank=self._rank, world_size=self._world_size
        )
        return (steps[:, None] * self._global_batch + of_first).ravel()

    def _stage_of(self, at: int) -> int:
        """The stage of global step `at`; stages are counted through the epochs."""
        epoch, step = divmod(at, self.steps_per_epoch)
        return epoch * self._epoch_stages + step * self._global_batch // self._stage

    def _records_of(self, stage: int) -> np.ndarray:
        """(n,) records that this rank reads in a stage."""
        epoch, stage = divmod(stage, self._epoch_stages)
        first, after = (-(-(stage + k) * self._stage // self._global_batch) for k in (0, 1))
        steps = np.arange(first, min(after, self.steps_per_epoch))
        return self._order(self._positions(steps), epoch)

    def _records_soon(self, at: int) -> np.ndarray:
        """(n,) records that this rank reads in global step `at` and the next few of its epoch."""
        epoch, step = divmod(at, self.steps_per_epoch)
        steps = np.arange(step, min(step + _STAGE, self.steps_per_epoch))
        return self._order(self._positions(steps), epoch)

    def _records(self, at: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Records, positions and epoch of this rank's batch at global step `at`."""
        epoch, step = divmod(at, self.steps_per_epoch)
        position = self._positions(np.array([step]))
        records = self._order(position, epoch)
        self._bad.replace(records)
        return records, position, epoch

    def _inputs(self, at: int) -> _Inputs:
        """What the graph takes for this rank's batch at global step `at`; called on threads."""
        self._check_files()
        records, position, epoch = self._records(at)
        draw = Draw(position, seed=self._seed, epoch=epoch, size=self._image_size)
        images = self._read(records, self._augmentation.mirrored(draw))
        labels, columns = self._collection.labels(records), None
        if self._columns:  # of the records that were read, after bad ones were replaced
            draw.columns = self._columns.of(records)
            if self._handed:
                columns = self._columns.together(self._handed, records)
        return _Inputs(images, labels, records, columns, self._augmentation.arrays(draw))

    def _read(
        self, records: np.ndarray, mirrored: np.ndarray | None
    ) -> list[np.ndarray] | np.ndarray:
        """Images of (B,) records: encoded ones where DALI decodes, else (B, H, W, 3) uint8.

        Where an image turns out bad, its record is replaced, in `records` too.
        """
        images, faults = self._fetch(records, mirrored)
        while faults:
            # Bad reads of a file that was cut off are not the records' fault.
            self._check_files()
            self._bad.add({int(records[i]): fault for i, fault in faults.items()})
            again = np.array(sorted(faults))
            replaced = records[again]
            self._bad.replace(replaced)
            records[again] = replaced
            found, faults = self._fetch(replaced, None if mirrored is None else mirrored[again])
            for i, image in zip(again.tolist(), found):
                images[i] = image
            faults = {int(again[k]): fault for k, fault in faults.items()}
        return images

    def _fetch(
        self, records: np.ndarray, mirrored: np.ndarray | None
    ) -> tuple[list[np.ndarray] | np.ndarray, dict[int, str]]:
        """What `_read` wants, and what is wrong with which of it."""
        sources = self._collection.sources(records)
        if self.decode != "gpu":
            return decode_batch(sources, size=self._image_size, mirrored=mirrored)
        encoded, faults = [], {}
        for i, source in enumerate(sources):
            try:
                encoded.append(np.frombuffer(source(), np.uint8))
            except RecordError as error:
                encoded.append(np.zeros(1, np.uint8))
                faults[i] = str(error)
        return encoded, faults

    def _check_files(self) -> None:
        for index in self._collection.indexes:
            index.file.check_unchanged()

    def _graph(self, source: Callable[[], tuple]) -> dali.Pipeline:
        arguments = self._augmentation.argument_types
        encoded = self.decode == "gpu"

        @dali.pipeline_def(enable_conditionals=True)  # the recipes' branches
        def graph() -> tuple:
            images, labels, *nodes = dali.fn.external_source(
                source=source,
                num_outputs=2 + len(arguments),
                batch=True,
                dtype=[dali.types.UINT8, dali.types.INT64, *(dtype for dtype, _ in arguments)],
                ndim=[1 if encoded else 3, 0, *(ndim for _, ndim in arguments)],
                layout=["" if encoded else "HWC", *[""] * (1 + len(arguments))],
            )
            shapes = []
            if encoded:
                images = decoded(images, "gpu")
                # Before recipes that resize: afterwards all have the right size.
                shapes = [images.shape(device="cpu")]
            elif self.decode == "hybrid":
                images = images.gpu()
            images = self._augmentation(images, nodes)
            if self._device.type != "cpu":
                images, labels = images.gpu(), labels.gpu()
            return images, labels, *shapes

        pipeline = graph(**pipeline_settings(self._batch, self.threads, self._device))
        pipeline.build()
        return pipeline

    def _hand_over(self, outputs: tuple, beside: Callable[[], _Beside]) -> Batch:
        images, labels, *shapes = outputs
        for shape in shapes:
            require_size(np.asarray(shape.as_tensor()), self._image_size)
        records, columns = beside()
        return Batch(
            channels_last(images, self._image_size),
            torch.from_dlpack(labels.as_tensor()),
            records,
            None if columns is None else self._on_device(columns),
        )

    def _quarantine(self, steps: range, error: RuntimeError) -> None:
        """Find out which records of these steps broke the pipeline; re-raise if none did."""
        found = {}
        for at in steps:
            records = self._records(at)[0]
            encoded = [source() for source in self._collection.sources(records)]
            faults = find_faults(encoded, self._image_size)
            found |= {int(records[i]): fault for i, fault in faults.items()}
        if not found:
            raise error
        self._bad.add(found, error)


class _InUse:
    """Batches whose consumer's device may not have read them yet.

    The host asks for work ahead of a GPU, and what is let go too early DALI would write over.
    """

    def __init__(self, device: torch.device) -> None:
        self._module = None if device.type == "cpu" else torch.get_device_module(device)
        self._batches: deque[tuple[torch.Event, Batch]] = deque()

    def keep(self, batch: Batch) -> None:
        """Hold a batch until the device has done what was asked of it so far."""
        if self._module is None:
            return
        event = self._module.Event()
        event.record()
        self._batches.append((event, batch))
        while self._batches and self._batches[0][0].query():
            self._batches.popleft()


class _Source:
    """What DALI calls for its inputs, ahead of what it gives (its prefetch).

    Attributes:
        taken: the first global step that was not asked for.
        beside: what does not go through the graph, of the batches in it.
    """

    def __init__(self, prepared: Generator[_Inputs, None, None], *, first: int) -> None:
        self._prepared, self.taken = prepared, first
        self.beside: deque[_Beside] = deque()

    def __call__(self) -> tuple:
        self.taken += 1
        inputs = next(self._prepared)
        self.beside.append((inputs.records, inputs.columns))
        return inputs.images, inputs.labels, *inputs.arguments

    def close(self) -> None:
        self._prepared.close()
