"""Announces what will be read, so that it is on its way from a slow disk before it is needed.

An order says how many positions make a stage: with blocks, those of a window, whose records lie in
a few long stretches. While one stage is used, the next one's records are announced, neighbors as
one stretch. The system's page cache keeps what arrives, for all ranks of a machine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.collection import Collection

# Bytes: fetching what lies between two records costs less than a request of its own.
_GAP = 64 << 10

_log = logging.getLogger("facestream.pipeline")


def read_ahead(
    steps: Iterable[int],
    *,
    stage_of: Callable[[int], int],
    records_of: Callable[[int], np.ndarray],
    soon: Callable[[int], np.ndarray],
    collection: Collection,
) -> Generator[int, None, None]:
    """Hand `steps` on, and announce (prefetch) each one's stage and the next, on a thread.

    Args:
        stage_of: a step's stage.
        records_of: the (n,) records that a stage reads.
        soon: the (n,) records of a step and the few after it, which come before all else at the
            start.
    """
    stop = threading.Event()

    def announce(wanted: Callable[[int], np.ndarray], number: int) -> None:
        if stop.is_set():
            return
        which, offset, length = collection.spans(wanted(number))
        try:
            for file in np.unique(which).tolist():
                here = which == file
                index = collection.indexes[file]
                for begin, size in zip(*stretches(offset[here], length[here])):
                    if stop.is_set():
                        return
                    index.file.will_need(begin, size)
        except OSError as error:
            stop.set()
            _log.warning("reads are not announced to the disk any more: %s", error)

    announced = -1
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        try:
            for step in steps:
                if announced < 0:
                    pool.submit(announce, soon, step)
                coming = stage_of(step) + 1
                for stage in range(max(coming - 1, announced + 1), coming + 1):
                    pool.submit(announce, records_of, stage)
                announced = coming
                yield step
        finally:
            stop.set()


def stretches(offset: np.ndarray, length: np.ndarray) -> tuple[list[int], list[int]]:
    """Spans (N,) in any order, at least one, as rising begins and lengths; near ones are joined."""
    order = np.argsort(offset)
    begin = offset[order]
    end = np.maximum.accumulate(begin + length[order])
    first = np.flatnonzero(np.append(True, begin[1:] - end[:-1] > _GAP))
    last = np.append(first[1:], len(begin)) - 1
    return begin[first].tolist(), (end[last] - begin[first]).tolist()
