"""Checkpoints through torch.distributed.checkpoint: written whole, and loaded into a step.

What is in one is for state.py to say, how it lies on the disk for files.py, when it is written for
saver.py, and which one a run resumes from for resume.py.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem

from facestream import VERSION
from pipeline.whole_file import replace
from training.config import Config
from training.own_parts import own_parts
from training.provenance import provenance
from training.saving import files
from training.saving.digests import Digest, DigestedFile
from training.saving.files import CheckpointError, checkpoints
from training.saving.head_rows import convert, kept_otherwise
from training.saving.lock import Lock
from training.saving.metadata import load_state, read_metadata
from training.saving.names import HEAD, OPTIMIZER, SCALER
from training.saving.pieces import PiecewisePlanner
from training.saving.starting_over import leave_out
from training.saving.state import (
    State,
    put_state,
    rank_mesh,
    read_state,
    share_head,
)
from training.saving.weight_file import some
from training.step.train_step import TrainStep

__all__ = [
    "CheckpointError",
    "checkpoints",
    "load",
    "write",
]


def write(
    output: Path,
    state: State,
    *,
    step: int,
    config: Config,
    facts: dict[str, Any],
    counters: Mapping[str, int] | None = None,
    group: dist.ProcessGroup | None = None,
    lock: Lock | None = None,
    data: list[dict[str, str]] | None = None,
) -> Path:
    """Write a state as the checkpoint of a step, remove old ones, return its folder.

    Call it on every rank of `group`.

    Args:
        state: on the host, nested, with the head's centers and velocity as DTensors (C, K·D).
        data: name, origin and license of what it was trained on; None: what `config` names.

    Raises:
        CheckpointError: on every rank, where any cannot write; the others stay as they were.
    """
    final = files.folder_of(output, step)
    writer, written = create_writer(final)
    about = {
        "format": files.FORMAT,
        "step": step,
        "facts": facts,
        "counters": dict(counters or {}),
        "versions": versions(),
        "ranks": dist.get_world_size(group),
        "own": own_parts(config),
        "data": provenance(config) if data is None and dist.get_rank(group) == 0 else data or [],
    }
    documents = {"config.json": config.as_dict(), "about.json": about}
    still_ours = lock.require if lock else lambda: None
    all_written = False
    try:
        still_ours()
        _on_main(lambda: files.clear(final), group)
        dcp.save(
            state | {"step": step},
            storage_writer=writer,
            planner=PiecewisePlanner(),
            process_group=group,
        )
        everyone: list[dict[str, Digest]] = [{} for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(everyone, written, group=group)
        digests = {name: digest for theirs in everyone for name, digest in theirs.items()}
        all_written = True
        still_ours()
        _on_main(lambda: files.complete(final, documents=documents, digests=digests), group)
    except (CheckpointException, CheckpointError, OSError) as error:
        still_ours()
        if not all_written and dist.get_rank(group) == 0:
            shutil.rmtree(final, ignore_errors=True)
        rest = f"; what there is of this one is in {final}" if all_written else ""
        raise CheckpointError(
            f"the checkpoint of step {step} was not saved: {_causes(error)}. Make room in {output} "
            f"or allow writing there; the checkpoint before it stays{rest}"
        ) from error
    if dist.get_rank(group) == 0:
        try:
            files.retain(output, step=step, keep=config.run.keep)
        except (OSError, CheckpointError) as error:
            logging.warning("%s is saved, but older checkpoints were not removed: %s", final, error)
    return final


def create_writer(folder: Path) -> tuple[dcp.FileSystemWriter, dict[str, Digest]]:
    """What dcp.save writes a checkpoint's folder with, and the digests of its files, by name."""
    # A warning of torch 2.6 about itself, left out for the whole process, as a thread may save.
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", module="torch.distributed")
    # Nothing is copied ahead: that would start an accelerator's context in this thread. Files are
    # synced as they are closed: left to itself the writer fails on disks that cannot.
    writer = dcp.FileSystemWriter(folder, per_thread_copy_ahead=0, sync_files=False)
    writer.fs = _DigestingFileSystem()
    return writer, writer.fs.digests


def load(path: Path, *, train_step: TrainStep) -> int:
    """Restore a checkpoint into a step of any world size; returns the step to resume from.

    Call it on every rank, and while no `Saver` is at work on this folder. Checksums are
    `resume.choose_checkpoint`'s to check.

    A head that keeps its rows in another dtype than the checkpoint gets them rounded to the
    nearest; what its neighbors or extra terms have otherwise starts over. Whether that is asked for
    is `resume.require_settings`'s to say.

    Raises CheckpointError when shapes or names do not fit.
    """
    head = train_step.head
    state = share_head(read_state(train_step), head, rank_mesh(head.centers.device.type))
    state["step"] = 0
    saved = read_metadata(path).state_dict_metadata
    if not any(key.startswith(f"{SCALER}.") for key in saved):
        state.pop(SCALER, None)  # the run so far needed no loss scaling
    _require_momentum(path, [*state[OPTIMIZER]["state"]], saved)
    others = kept_otherwise(saved, head)
    for name in itertools.chain(*others):
        state[HEAD].pop(name, None)
    started = leave_out(saved, state[HEAD], path)
    try:
        load_state(state, path)
        converted = [convert(path, head, names) for names in others]
    except CheckpointException as error:
        raise CheckpointError(
            f"{path} does not fit this run: {_causes(error)}. Choose another run.output, or "
            "restore the configuration that it was saved with"
        ) from error
    put_state(state, train_step)
    if dist.get_rank() == 0:
        for line in (*started, *converted):
            logging.warning(line)
    _tell_of_other_versions(path)
    return state["step"]


def _require_momentum(path: Path, learning: Sequence[str], saved: Iterable[str]) -> None:
    """Raise CheckpointError where parameters that learn were frozen when others were saved."""
    section = f"{OPTIMIZER}.state."
    known = {key.removeprefix(section).rpartition(".")[0] for key in saved if section in key}
    missing = [name for name in learning if name not in known]
    if 0 < len(missing) < len(learning):
        raise CheckpointError(
            f"{path} has no optimizer's state of {some(missing)}: they were frozen there and learn "
            f"here. Start from its weights, run.init_from={path}, or freeze them here, too"
        )


@cache
def versions() -> dict[str, str]:
    """Of the software that a run's numbers depend on."""
    dali = (d for d in metadata.distributions() if d.name.startswith("nvidia-dali"))
    return {
        "facestream": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "dali": next((d.version for d in dali), "none"),
    }


def _tell_of_other_versions(path: Path) -> None:
    saved_with = files.read_about(path)["versions"]
    other = [
        f"{name} {saved_with[name]}, now {version}"
        for name, version in versions().items()
        if saved_with.get(name, version) != version
    ]
    if other and dist.get_rank() == 0:
        logging.warning(
            "%s was saved with %s: losses may differ in their last bits", path, "; ".join(other)
        )


class _DigestingFileSystem(FileSystem):
    """Digests what torch.distributed.checkpoint writes, as it is written, and syncs it."""

    def __init__(self) -> None:
        self.digests: dict[str, Digest] = {}  # by file name

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        assert mode == "wb", mode
        try:
            with DigestedFile(path) as stream:
                yield stream
        except RuntimeError as error:
            # torch.save trips over the archive that a failed write leaves, and hides the failure.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        self.digests[Path(path).name] = stream.digest()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        replace(Path(path), Path(new_path))
        self.digests[Path(new_path).name] = self.digests.pop(Path(path).name)


def _on_main(work: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Do `work` on rank 0; where the disk fails it, every rank raises what it raised."""
    outcome: list[OSError | CheckpointError | None] = [None]
    if dist.get_rank(group) == 0:
        try:
            work()
        except (OSError, CheckpointError) as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0, group=group)
    if outcome[0] is not None:
        raise outcome[0]


def _causes(error: CheckpointException | CheckpointError | OSError) -> str:
    """What went wrong on the ranks, without their traces."""
    if not isinstance(error, CheckpointException):
        return str(error)
    return "; ".join(sorted({str(cause) for cause, _ in error.failures.values()}))
