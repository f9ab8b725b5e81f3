"""A run's checkpoints, written by a thread while training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from heads.rows.buffers import ROWS
from training.config import Config
from training.saving import files
from training.saving.checkpoint import write
from training.saving.files import CheckpointError, Scores, checkpoints
from training.saving.lock import Lock
from training.saving.names import BACKBONE, HEAD
from training.saving.state import HostCopy, State, rank_mesh, read_state, share_head
from training.step.backbone import unwrapped
from training.step.train_step import TrainStep


class Saver:
    """Saves a run's checkpoints while it trains on.

    `save` copies the state to the host and returns; a thread on every rank writes the copy. The
    threads have a process group of their own, so that their collectives do not mix with training's.
    A save that fails is logged, the checkpoint before it stays, and training goes on.

    Build it on every rank, and call `close` on every rank before the process group ends. Its copy
    takes as much of the host's memory as the state takes of the device's. A head's rows on a disk
    are not copied: they are written from there, while training waits.

    Args:
        output: the run's folder.
        config: how many checkpoints are kept; it is saved too.
        train_step: what is saved.
        facts: what identifies the run, see `resume.claim`.
        lock: on the main rank, what holds the folder; a run that has lost it writes nothing.
        compared_by: the test sets whose scores say which checkpoint is the best.
    """

    def __init__(
        self,
        output: Path,
        *,
        config: Config,
        train_step: TrainStep,
        facts: dict[str, Any],
        lock: Lock | None = None,
        compared_by: Sequence[str] = (),
    ) -> None:
        self._compared_by = compared_by
        self._output, self._config, self._facts, self._lock = output, config, facts, lock
        self._train_step = train_step
        self._group = dist.new_group(backend="gloo")
        self._mesh = rank_mesh("cpu")
        self._copy = HostCopy()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None
        self.newest: Path | None = None  # completed, and waited for; or resumed from
        self._scores: dict[int, Scores] = {}  # by step, of checkpoints that lack them
        self.fault: str | None = None  # why the last save failed, if it did
        self.on_saved: Callable[[Path], None] = lambda path: None  # called by the thread

    def reserve(self) -> None:
        """Take memory for the copy, so that what does not fit fails before the first step.

        Not for the optimizer's state, which may not be there yet.
        """
        backbone, head = unwrapped(self._train_step.backbone), self._train_step.head
        self._copy({BACKBONE: backbone.state_dict(), HEAD: self._copied(head.state_dict())})

    def save(self, step: int, *, counters: Mapping[str, int] | None = None) -> Path:
        """Copy the state after `step` steps and begin to write it; returns where it will be.

        Call it on every rank. It waits for the save before it, then as long as the copy takes.

        Args:
            counters: what the run has counted.
        """
        self.wait()
        state = self._snapshot()
        self._pending = self._thread.submit(
            write,
            self._output,
            share_head(state, self._train_step.head, self._mesh),
            step=step,
            config=self._config,
            facts=self._facts,
            counters=counters,
            group=self._group,
            lock=self._lock,
        )
        self._pending.add_done_callback(_report)
        self._pending.add_done_callback(self._announce)
        self._thread.submit(self._add_scores).add_done_callback(_report)
        if self._train_step.head.place == "disk":
            self.wait()
        return files.folder_of(self._output, step)

    def _snapshot(self) -> State:
        """The state as it is now, for the thread to write."""
        state = read_state(self._train_step)
        copied = self._copy(state | {HEAD: self._copied(state[HEAD])})
        return copied | {HEAD: state[HEAD] | copied[HEAD]}

    def _copied(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is copied of a head: not the rows that are on a disk for want of memory."""
        on_disk = ROWS if self._train_step.head.place == "disk" else ()
        return {name: tensor for name, tensor in head.items() if name not in on_disk}

    def add_scores(self, step: int, scores: Scores) -> None:
        """Add what the verification of the state after `step` steps found to its checkpoint.

        As soon as that is complete; it may have been saved by an earlier process.
        """
        if scores and dist.get_rank() == 0:
            self._scores[step] = {**self._scores.get(step, {}), **scores}
            self._thread.submit(self._add_scores).add_done_callback(_report)

    def wait(self) -> Path | None:
        """Wait for the save under way; returns `newest`."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            try:
                self.newest, self.fault = pending.result(), None
            except CheckpointError as error:
                self.fault = str(error)
        return self.newest

    def close(self) -> Path | None:
        """Wait as `wait` does, for the last time."""
        newest = self.wait()
        self._thread.shutdown()
        return newest

    def _announce(self, saved: Future[Path]) -> None:
        if saved.exception() is None:
            self.on_saved(saved.result())

    def _add_scores(self) -> None:
        """Write down the scores of checkpoints that are there; the thread's."""
        for step, scores in list(self._scores.items()):
            path = files.folder_of(self._output, step)
            if path not in checkpoints(self._output):
                continue
            if self._lock:
                self._lock.require()
            try:
                files.write_scores(path, scores, compared_by=self._compared_by)
                del self._scores[step]
            except OSError as error:
                logging.warning(
                    "the scores of %s were not written (%s): the next save tries again", path, error
                )


def _report(saved: Future[Any]) -> None:
    """Tell at once what `wait` would tell at the next save."""
    error = saved.exception()
    if error is not None and dist.get_rank() == 0:
        logging.error("%s", error)
