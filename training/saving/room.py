"""The room that a run's checkpoints take on the disk, asked for before the first step."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from training.config import Config
from training.saving.files import CheckpointError, checkpoints, least_kept
from training.saving.state import SHARDED
from training.step.backbone import unwrapped
from training.step.train_step import TrainStep


@dataclass(frozen=True)
class Room:
    """What checkpoints take and what there is, in bytes."""

    each: int
    at_once: int  # how many lie on the disk while one is being written
    held: int  # by checkpoints that this run has already
    free: int | None  # None: the disk does not say

    @property
    def missing(self) -> int:
        """What has still to be written, at least once, before anything is removed."""
        return max(self.each, self.at_once * self.each - self.held) if self.at_once else 0

    def __str__(self) -> str:
        """In 10^6 bytes, for the log."""
        if not self.at_once:
            return "no checkpoint is to come"
        free = "an unknown amount" if self.free is None else f"{_mb(self.free)} MB"
        return (
            f"a checkpoint takes {_mb(self.each)} MB, at most {self.at_once} at once; "
            f"{free} free, where a quota counts only if the disk reports it"
        )


def require_room(
    config: Config, train_step: TrainStep, *, steps_done: int, steps_per_epoch: int
) -> Room:
    """How much of their disk the checkpoints from here to the last step take.

    Call it on the main rank. The folder need not exist yet.

    Raises CheckpointError where they cannot fit: it says how many would, and what to set.
    """
    output = Path(config.run.output)
    existing = checkpoints(output)
    saves = _saves_left(config, steps_done=steps_done, steps_per_epoch=steps_per_epoch)
    best = int(bool(config.eval.sets))
    most = least_kept(config.run.keep) + best + 1
    room = Room(
        each=checkpoint_bytes(train_step),
        at_once=min(most, len(existing) + saves) if saves else 0,
        held=sum(file.stat().st_size for path in existing for file in path.iterdir()),
        free=_free(output / "checkpoints"),  # which may be a link to another disk
    )
    if room.free is None or room.missing <= room.free:
        return room
    fit = (room.free + room.held) // room.each
    keep = fit - best - 1
    remedy = "Make room, or choose a run.output on another disk"
    if least_kept(keep) <= keep:
        remedy = f"Set run.keep={keep}, make room, or choose a run.output on another disk"
    besides = "the best one and " if best else ""
    raise CheckpointError(
        f"run.output={output}: {room.at_once} checkpoints of {_mb(room.each)} MB lie there at "
        f"once, with run.keep={config.run.keep}, {besides}the one being written: "
        f"{_mb(room.missing)} MB more than there are now; {_mb(room.free)} MB are free, "
        f"{_enough_for(fit)}. {remedy}"
    )


def _enough_for(fit: int) -> str:
    """So many checkpoints, those of now among them."""
    return f"which makes room for {fit} in all" if fit else "not enough for a single one"


def checkpoint_bytes(train_step: TrainStep) -> int:
    """Of all ranks' tensors together, on the main rank; what else is in a checkpoint is little."""
    head, kept = train_step.head, train_step.optimizer.state.values()
    shared = [
        *unwrapped(train_step.backbone).state_dict().values(),
        *(value for state in kept for value in state.values() if isinstance(value, Tensor)),
    ]
    rows = sum(rows[:1].nbytes for name, rows in head.state_dict().items() if name in SHARDED)
    return sum(tensor.nbytes for tensor in shared) + head.num_classes * rows


def _saves_left(config: Config, *, steps_done: int, steps_per_epoch: int) -> int:
    """How often a run saves from here on, if nothing stops it."""
    epochs = math.ceil(config.run.epochs - steps_done / steps_per_epoch)
    inside = (steps_per_epoch - 1) // config.run.save_steps if config.run.save_steps else 0
    return max(0, epochs) * inside + math.ceil(max(0, epochs) / config.run.save_every)


def _free(folder: Path) -> int | None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"
