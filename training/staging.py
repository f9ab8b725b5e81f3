"""data.stage: the training set's files copied to a disk of the node while the run reads them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.collection import Collection
from pipeline.containers.files import FilesEndToEnd
from pipeline.records.index import RecordIndex
from pipeline.records.record_file import DataFile
from pipeline.staging.by_order import pieces_by_need
from pipeline.staging.copier import Copier
from pipeline.staging.local_copy import LocalCopy, Original
from pipeline.staging.room import require_room
from training.config import Config, ConfigError
from training.data import TrainingData
from training.distributed import World, together
from training.named_files import check_named_files
from training.setting_names import settings_named

_PATIENCE = 60.0  # seconds for the pieces that are being copied


def use_copies(config: Config, world: World, records: Collection) -> str:
    """Let every file be read from its copy, as far as there is one; call it on every rank.

    Returns what there is and what is to come, in words; empty without data.stage.

    Raises UserError for a folder of images, and where there is no room, on any node.
    """
    if not config.data.stage:
        return ""
    stage = Path(config.data.stage)
    together(lambda: check_named_files(config, "data.stage"))
    files = together(lambda: [file for index in records.indexes for file, _ in _files_of(index)])
    copies = together(lambda: [_take(file, stage) for file in files])
    with settings_named(stage="data.stage"):
        room_line = together(lambda: require_room(stage, copies) if world.local_rank == 0 else "")
    whole = sum(copy.is_whole for copy in copies)
    return f"{stage}, {whole} of {len(copies)} files are there whole; {room_line}"


@contextmanager
def copying(
    config: Config, world: World, data: TrainingData, *, epoch: int, step: int
) -> Iterator[None]:
    """Around a run's steps from `step` of `epoch` on: one rank of each node copies what is missing.

    On leaving it stops, and the next start goes on.
    """
    if not config.data.stage or world.local_rank:
        yield
        return
    stop = threading.Event()
    copiers = []
    for which, index in enumerate(data.records.indexes):
        for file, start in _files_of(index):
            assert isinstance(file.copy, LocalCopy), "use_copies was called"
            order = pieces_by_need(
                which,
                copy=file.copy,
                start=start,
                records=data.records,
                order=data.order,
                epoch=epoch,
                position=step * config.data.global_batch,
                epoch_records=data.epoch_records,
            )
            copiers.append(Copier(file, file.copy, order))

    def copy() -> None:
        for copier in copiers:
            copier.run(stop)

    thread = threading.Thread(target=copy, name="stage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_PATIENCE)
        if thread.is_alive():
            logging.warning(
                "the disk of data.train or that of data.stage does not answer: copying is abandoned"
            )


def _files_of(index: RecordIndex) -> list[tuple[DataFile, int]]:
    """The files of a set, each with the offset of its first byte in the set."""
    if isinstance(index.file, DataFile):
        return [(index.file, 0)]
    if isinstance(index.file, FilesEndToEnd):
        return list(zip(index.file.files, index.file.starts.tolist()))
    raise ConfigError(
        f"data.stage: {index.path} is a folder of single images, expected a set in few files: a "
        ".rec, a .zip, an LMDB, parquet or tar files. Pack it, `python tools/pack_rec.py`, or "
        "leave data.stage out"
    )


def _take(file: DataFile, stage: Path) -> LocalCopy:
    original = Original(file.path.absolute(), file.size, file.changed, file.fingerprint)
    file.copy = copy = LocalCopy(stage, original)
    return copy
