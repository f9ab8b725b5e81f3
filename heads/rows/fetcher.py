"""Rows that are kept away from the device: fetched for a step, ahead where it is known, and back.

One thread does all reading and writing of the kept matrices, in the order in which it is asked. So
what is fetched after a step was written back has its changes; what was fetched before is patched
with them. A step therefore computes with the same bits as if its rows had never left the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from heads.rows.overlap import SortedRows, gather, overlap, scatter
from heads.rows.placement import Placement
from heads.rows.working_set import WorkingSet
from heads.sampling import Sample, Sampling

# (step, labels of the global batch, sampling) → the sample, all on the host.
Draw = Callable[[int, Tensor, Sampling], Sample]


class _Fetched(NamedTuple):
    """The rows of one step, side by side on the host."""

    sample: Sample  # its rows are always named
    rows: SortedRows
    matrices: dict[str, Tensor]  # (S, W) each


@dataclass
class _Coming:
    """A step whose rows are fetched by `job`, from matrices of these versions.

    patched: the last job that put later changes into them.
    """

    labels: Tensor
    sampling: Sampling
    job: Future[_Fetched]
    versions: tuple[int, ...]
    patched: Future[None] | None = None

    def is_for(self, labels: Tensor, sampling: Sampling) -> bool:
        return sampling == self.sampling and torch.equal(labels, self.labels)


class RowFetcher:
    """Brings the rows of each step to the device and writes them back.

    Not the matrices' owner: others may read and write them after `settle`. What they write makes
    what was fetched before be fetched again.

    Args:
        matrices: (n, W) each, by name, on the host.
        draw: must be free to be called from a thread.
        placement: where they are kept.
        working_set: where the rows of a step go.
        depth: how many coming steps may be fetched at once.
    """

    def __init__(
        self,
        matrices: Mapping[str, Tensor],
        draw: Draw,
        *,
        placement: Placement,
        working_set: WorkingSet,
        depth: int,
    ) -> None:
        self._matrices, self._draw, self._depth = dict(matrices), draw, depth
        self._placement, self._working_set = placement, working_set
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._free: list[dict[str, Tensor]] = []  # the thread's
        self._current: _Fetched | None = None
        self._coming: dict[int, _Coming] = {}  # by step
        self._jobs: deque[Future[None]] = deque()
        self._next_step: int | None = None

    @property
    def sample(self) -> Sample:
        """Of the step that was fetched, on the device."""
        tensors = self._working_set.tensors
        return Sample(*(tensors.get(name) for name in Sample._fields))

    @property
    def rows(self) -> dict[str, Tensor]:
        """(S, W) rows of that step, on the device, by the names of the matrices."""
        return {name: self._working_set.tensors[name] for name in self._matrices}

    def announce(self, labels: Tensor, sampling: Sampling, *, step: Tensor, ahead: int) -> None:
        """Say which labels a coming step will have: its rows are fetched from now on.

        Args:
            labels: (G,) int64 on the host, of the global batch.
            step: 0-d, the number of the next step; read where no step was fetched yet.
            ahead: how many steps after the next one; beyond the depth they are not fetched.
        """
        if ahead > self._depth:
            return
        number = ahead + (int(step) if self._next_step is None else self._next_step)
        known = self._coming.get(number)
        if known and known.is_for(labels, sampling):
            return
        if known:
            self._forget(number)
        self._coming[number] = self._begin(number, labels.clone(), sampling)

    def fetch(self, labels: Tensor, sampling: Sampling, *, step: int) -> None:
        """Have the rows of a step in the working set, whatever was announced.

        Raises whatever went wrong in the thread, with its trace.
        """
        self._raise_faults()
        self._current = None  # where no step followed its forward
        coming = self._coming.get(step)
        fits = coming and coming.is_for(labels, sampling) and coming.versions == self._versions()
        for number in list(self._coming):
            if not (number == step and fits) and not step < number <= step + self._depth:
                self._forget(number)
        found = self._coming.pop(step) if fits else self._begin(step, labels, sampling)
        self._next_step = step + 1
        self._current = found.job.result()
        if found.patched is not None:
            found.patched.result()
        parts = {
            name: part for name, part in self._current.sample._asdict().items() if part is not None
        }
        self._working_set.load(self._current.matrices | parts)

    def write_back(self) -> None:
        """The step is done: its rows go back, and into what was fetched ahead."""
        assert self._current is not None, "fetched"
        done, self._current = self._current, None
        copied = self._working_set.unload(done.matrices)
        self._jobs.append(self._thread.submit(copied))
        for number in sorted(self._coming):  # the next step first: it may wait for it
            coming = self._coming[number]
            coming.patched = self._thread.submit(self._patch, done, coming.job)
            self._jobs.append(coming.patched)
        self._jobs.append(self._thread.submit(self._write, done))

    def settle(self) -> None:
        """Wait until the matrices hold all that was written back; raises as `fetch` does."""
        while self._jobs:
            self._jobs.popleft().result()

    def _raise_faults(self) -> None:
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()

    def _versions(self) -> tuple[int, ...]:
        return tuple(matrix._version for matrix in self._matrices.values())

    def _begin(self, step: int, labels: Tensor, sampling: Sampling) -> _Coming:
        job = self._thread.submit(self._fetch, step, labels, sampling)
        return _Coming(labels, sampling, job, self._versions())

    def _forget(self, number: int) -> None:
        self._coming.pop(number).job.cancel()

    # The thread's part.

    def _fetch(self, step: int, labels: Tensor, sampling: Sampling) -> _Fetched:
        sample = self._draw(step, labels, sampling)
        if sample.rows is None:
            count = len(next(iter(self._matrices.values())))
            sample = sample._replace(rows=torch.arange(count))
        assert sample.rows is not None
        found = self._memory(len(sample.rows))
        for matrix in self._matrices.values():
            self._placement.will_need(matrix, sample.rows)
        for name, matrix in self._matrices.items():
            gather(matrix, sample.rows, found[name])
        rows = SortedRows.of(sample.rows)
        if self._placement.pins:
            sample = Sample(*(part if part is None else part.pin_memory() for part in sample))
        return _Fetched(sample, rows, found)

    def _memory(self, count: int) -> dict[str, Tensor]:
        """For `count` rows of each matrix: what an earlier step has left, where it fits."""
        while self._free:
            held = self._free.pop()
            if all(len(tensor) == count for tensor in held.values()):
                return held
        return {
            name: torch.empty(
                count,
                *matrix.shape[1:],
                dtype=matrix.dtype,
                device="cpu",
                pin_memory=self._placement.pins,
            )
            for name, matrix in self._matrices.items()
        }

    def _patch(self, done: _Fetched, job: Future[_Fetched]) -> None:
        if job.cancelled() or job.exception():  # it is raised where the rows are asked for
            return
        ahead = job.result()
        to, source = overlap(ahead.rows, done.rows)
        for name, matrix in ahead.matrices.items():
            scatter(matrix, to, done.matrices[name], source)

    def _write(self, done: _Fetched) -> None:
        for name, matrix in self._matrices.items():
            scatter(matrix, done.rows.rows, done.matrices[name])
        self._free.append(done.matrices)
