"""Records whose images cannot be decoded: counted, logged, replaced; an error when too many."""

from __future__ import annotations

import logging
import threading

import numpy as np

from pipeline.collection import Collection
from pipeline.records.recordio import RecordError

_log = logging.getLogger("facestream.pipeline")


class BadRecords:
    """What is known to be bad of a collection; threads share it.

    Args:
        max_fraction: of the collection's images that may be bad before that is an error.
    """

    def __init__(self, collection: Collection, *, max_fraction: float) -> None:
        self.faults: dict[int, str] = {}  # record number → what is wrong with it
        self._collection = collection
        self._limit = max_fraction * len(collection)
        self._lock = threading.Lock()

    def replace(self, records: np.ndarray) -> None:
        """Put the next good record in the place of each (N,) that is known to be bad."""
        with self._lock:
            # Where none is good, whoever found that out raises.
            some = 0 < len(self.faults) < len(self._collection)
            for i, record in enumerate(records.tolist()) if some else ():
                while record in self.faults:
                    record = (record + 1) % len(self._collection)
                records[i] = record

    def add(self, found: dict[int, str], cause: RuntimeError | None = None) -> None:
        """Count records as bad, and say so; RecordError where that makes too many."""
        with self._lock:
            new = {record: fault for record, fault in found.items() if record not in self.faults}
            self.faults |= new
            count = len(self.faults)
        # On two threads, each must raise: the other's batch would be looked for forever.
        if count > self._limit or count == len(self._collection):
            record, fault = next(iter((new or found).items()))
            raise RecordError(
                f"{self._collection.describe(record)} {fault}. That makes {count} bad images of "
                f"{len(self._collection)}: give another image_size where that is theirs, pack the "
                "set again without them, or raise max_bad_fraction"
            ) from cause
        for record, fault in new.items():
            _log.warning(
                "%s %s: the next good one takes its place", self._collection.describe(record), fault
            )
