"""What one look through a set finds, and how that is summed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.containers.texts import Texts
from pipeline.records.scan import RECORD, Summary

_SHOWN = 20  # damaged images that are named


class Content(NamedTuple):
    """A set's table.

    Attributes:
        records: (N,) RECORD; offsets rise, each is one record's alone.
        summary: of them.
        names: of the identities by label; none where the labels are numbers of the set's own.
        paths: of the images, or what else the set calls them, in the order of the records.
    """

    records: np.ndarray
    summary: Summary
    names: Texts
    paths: Texts


class ImageNames:
    """What a set calls its images; by their records, in the order of the offsets."""

    def __init__(self, content: Content) -> None:
        self._offsets, self._paths = content.records["offset"], content.paths

    def of(self, record: np.void) -> str:
        return self._paths[int(np.searchsorted(self._offsets, record["offset"]))]


NO_TEXTS = Texts.of([])


def to_records(
    offset: np.ndarray, header: np.ndarray, length: np.ndarray, label: np.ndarray
) -> np.ndarray:
    """Four (N,) arrays of whole numbers, in the order of the offsets, as (N,) RECORD."""
    records = np.empty(len(offset), RECORD)
    records["offset"], records["header"] = offset, header
    records["length"], records["label"] = length, label
    return records


def summarize(records: np.ndarray, damaged: Sequence[tuple[int, int, str]] = ()) -> Summary:
    """Of (N,) RECORD and what is lost beside them: (offset, bytes, why) each."""
    labels, lengths = records["label"], records["length"]
    return Summary(
        images=len(records),
        identities=len(np.unique(labels)),
        num_classes=int(labels.max()) + 1 if len(labels) else 0,
        header_records=0,
        identity_records=0,
        announced_images=None,
        smallest=int(lengths.min()) if len(lengths) else 0,
        largest=int(lengths.max()) if len(lengths) else 0,
        split_records=0,
        damaged_spans=len(damaged),
        damaged_bytes=sum(size for _, size, _ in damaged),
        damaged=tuple(damaged[:_SHOWN]),
        truncated=False,
    )
