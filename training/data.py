"""The training set as it is configured: files, labels, what is left out, the order."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from heads import create_margin
from heads.margins import WEIGHT
from pipeline.augment import Augmentation
from pipeline.collection import Collection, dense_labels, stack_labels
from pipeline.containers.open_records import open_records
from pipeline.identity_map import read_identity_map
from pipeline.order import BalancedOrder, BlockOrder, GlobalOrder, Order, WeightedOrder
from pipeline.record_filter import read_filter
from pipeline.records.image_kind import image_size
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError
from pipeline.shuffle_report import report_shuffle
from pipeline.side_columns import SideColumns, read_columns
from training.config import Config, ConfigError, DataConfig
from training.distributed import World, together
from training.named_files import check_named_files
from training.reporting.scan_progress import scan_progress
from training.setting_names import settings_named

_FAR_TOO_MANY = 10  # classes for each identity that has an image
_LOOKED_AT = 8  # images, for their size


class TrainingData(NamedTuple):
    """What is trained on.

    Attributes:
        records: all that may be seen.
        order: which of them when, for every epoch.
        epoch_records: positions of an epoch, which weights may make more or fewer than the records.
        columns: values beside the images, where data.columns names any.
    """

    records: Collection
    order: Order
    epoch_records: int
    columns: SideColumns | None = None

    @property
    def fingerprint(self) -> str:
        """What the files are made of, in few letters."""
        return " ".join(index.file.fingerprint for index in self.records.indexes)


def open_training_data(config: Config, world: World) -> TrainingData:
    """Open every file on every rank, and agree on what is trained on.

    Raises UserError, a subclass of it, for whatever cannot be trained on.
    """
    data = config.data
    named = ("data.train", "data.identity_map", "data.leave_out", "data.columns")
    together(lambda: check_named_files(config, *named, "distill.teacher"))
    indexes = [open_shared_index(path, world) for path in data.files]
    with settings_named("data.max_bad_fraction"):
        for index in indexes:
            index.summary.check_damage(index.path, data.max_bad_fraction)
    labels = stack_labels(indexes)
    if data.identity_map:
        labels = together(lambda: read_identity_map(data.identity_map, indexes))
    kept: list[np.ndarray | None] = [None] * len(indexes)
    if data.leave_out:
        kept = together(lambda: read_filter(data.leave_out, indexes))
    if data.labels == "dense":
        labels = dense_labels(indexes, labels, kept)
    records = Collection(indexes, labels, kept)
    if not len(records):
        images = sum(len(index) for index in indexes)
        left_out = f", and data.leave_out={data.leave_out} leaves out all of them" if images else ""
        raise ConfigError(
            f"data.train={data.train}: found {images} images{left_out}: expected some to train on"
        )
    together(lambda: world.is_main and _require_image_size(records, data.image_size))
    columns = None
    if data.columns:
        with settings_named("data.columns", "data.augment"):
            read = (*columns_of_head(config), *columns_of_recipes(config))
            columns = together(lambda: read_columns(data.columns, records, read))
    shown = _shown(data, records)
    return TrainingData(records, create_order(config, records, shown), sum(shown), columns)


def columns_of_head(config: Config) -> tuple[str, ...]:
    """What of data.columns the head is given with each image, in its order."""
    margin = create_margin(config.head.loss, **config.head.loss_args)
    weight = (WEIGHT,) if config.data.record_weights else ()
    return (*weight, *(name for name in margin.columns if name not in weight))


def columns_of_recipes(config: Config) -> tuple[str, ...]:
    """What of data.columns the recipes of data.augment read."""
    return tuple(
        name for names in Augmentation(config.data.augment).needs.values() for name in names
    )


def open_shared_index(path: str, world: World) -> RecordIndex:
    """Open a set on every rank; the first rank of each machine makes its index if need be."""
    with settings_named(record_filter="data.leave_out"):
        progress = scan_progress(path)
        first = together(lambda: open_records(path, progress) if world.local_rank == 0 else None)
        return together(lambda: open_records(path) if first is None else first)


def _require_image_size(records: Collection, expected: int) -> None:
    """Raise ConfigError where images from here and there all have another size.

    Whether single ones have is seen when they are decoded.
    """
    chosen = np.unique(np.linspace(0, len(records) - 1, _LOOKED_AT).astype(int))
    sizes = []
    for source in records.sources(chosen):
        try:
            sizes.append(image_size(source()))
        except RecordError:  # counted as bad later
            sizes.append(None)
    if None in sizes or (expected, expected) in sizes:
        return
    found = ", ".join(sorted({f"{width}×{height}" for height, width in sizes}))
    height, width = sizes[0]
    fits = len(set(sizes)) == 1 and height == width and height % 16 == 0
    raise ConfigError(
        f"data.image_size={expected}: images of data.train are {found} pixels. "
        + (f"Set data.image_size={height}, or pack" if fits else "Pack")
        + f" them again: `python tools/pack_rec.py {records.indexes[0].path} NEW --resize "
        f"{expected}`"
    )


def warn_of_empty_classes(records: Collection, configured: int | None) -> None:
    """Classes without an image are no fault where they are to come, and else a slip."""
    classes, identities = max(records.num_classes, configured or 0), records.count_identities()
    if 1 < identities < classes:
        logging.warning(
            "the head has %d classes, of which %d have no image in data.train: they take memory "
            "and are only pushed away. Unless they are to get some, set data.labels=dense%s",
            classes,
            classes - identities,
            " and leave head.num_classes out" if configured else "",
        )


def count_classes(records: Collection, configured: int | None) -> int:
    """The number of classes of the head.

    Raises ConfigError when a label lies outside it, when there is one identity alone, and when
    labels that nobody has would make it ten times as large as it must be, unless it is configured.
    """
    found, identities = records.num_classes, records.count_identities()
    if identities < 2:
        raise ConfigError(
            f"data.train: its images are of {identities} identities, labels up to {found - 1}: a "
            "head has nothing to tell apart, the loss would be 0 at once. Expected at least two; "
            "see that the labels are identities"
        )
    if configured is None and found > _FAR_TOO_MANY * identities:
        raise ConfigError(
            f"data.train: {identities} identities, labels up to {found - 1}: a head of {found} "
            "classes would be mostly of nobody. Set data.labels=dense to number those that there "
            f"are, or head.num_classes={found} to train it so"
        )
    if configured is None or found <= configured:
        return configured or found
    piece = 1 << 20
    for start in range(0, len(records), piece):
        labels = records.labels(np.arange(start, min(start + piece, len(records))))
        if (labels >= configured).any():
            index, record = records.locate(start + int(np.argmax(labels >= configured)))
            raise ConfigError(
                f"head.num_classes={configured}: {index.path} has labels up to {found - 1}, the "
                f"first too large one at offset {index.records['offset'][record]}; expected at "
                f"least {found}"
            )
    return configured


def create_order(config: Config, records: Collection, shown: list[int]) -> Order:
    """Which record when, as the configuration wants it."""
    data, seed, count = config.data, config.run.seed, sum(shown)
    if data.order == "balanced":
        if data.weights:
            raise ConfigError(
                "data.weights: expected none with data.order=balanced, where identities take turns"
            )
        labels = records.labels(np.arange(count))
        with settings_named("data.global_batch", images="data.images_per_identity"):
            return BalancedOrder(
                labels,
                seed=seed,
                global_batch=data.global_batch,
                images=data.images_per_identity,
            )
    if data.order == "block":
        order: Order = BlockOrder(
            count, seed=seed, block=data.block_records, window=data.window_blocks
        )
    else:
        order = GlobalOrder(count, seed=seed)
    if not data.weights:
        return order
    return WeightedOrder(order, counts=records.counts, shown=shown)


def _shown(data: DataConfig, records: Collection) -> list[int]:
    """Records of each file that an epoch shows."""
    weights = data.weights or (1.0,) * len(records.counts)
    if len(weights) != len(records.counts):
        raise ConfigError(
            f"data.weights={list(weights)}: expected one for each of data.train, which are "
            f"{len(records.counts)}"
        )
    return [round(weight * count) for weight, count in zip(weights, records.counts)]


def shuffle_report(config: Config, training: TrainingData) -> str:
    """How well the order mixes identities, in words."""
    report = report_shuffle(
        training.order,
        training.records.labels,
        epoch_records=training.epoch_records,
        global_batch=config.data.global_batch,
        seed=config.run.seed,
    )
    if config.data.order == "balanced":  # few identities are its purpose, and no window's fault
        return f"{report.found:.1f} distinct identities in a batch"
    return f"{report}: data.window_blocks, data.block_records" if report.is_poor else str(report)
