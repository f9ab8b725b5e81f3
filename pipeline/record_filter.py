"""Records to leave out, named in a text file: the .rec stays as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.collection import find_file
from pipeline.named_path import read_text
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError

_NUMBER = re.compile("[0-9]{1,18}")


def read_filter(path: str | Path, indexes: Sequence[RecordIndex]) -> list[np.ndarray | None]:
    """What is kept of each file when what the list names is left out: (n,) record numbers, or None.

    Args:
        path: lines of `identity LABEL` or `record OFFSET`, as labels and offsets are in the .rec,
            with the file in front where there are several; # begins a comment.

    Raises:
        RecordError: a line that is none of these or names what is not there.
    """
    path = Path(path)
    left_out = [np.zeros(len(index), bool) for index in indexes]
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        place = f"{path}, line {number}"
        *file, kind, value = words if len(words) > 1 else ("", "")
        if kind not in ("identity", "record") or len(file) > 1 or not _NUMBER.fullmatch(value):
            raise RecordError(
                f"{place}: found {line.strip()!r}, expected `identity LABEL` or `record OFFSET`, "
                "with the file in front where there are several"
            )
        at = find_file(file[0], indexes, place=place) if file else 0
        if not file and len(indexes) > 1:
            raise RecordError(
                f"{place}: found {line.strip()!r}, expected the file in front, as there are "
                f"{len(indexes)} files: `{indexes[0].path} {kind} {value}`"
            )
        records = indexes[at].records
        if kind == "identity":
            named = records["label"] == int(value)
        else:
            named = records["offset"] == int(value)
        if not named.any():
            raise RecordError(f"{place}: {indexes[at].path} has no image of {kind} {value}")
        left_out[at] |= named
    return [np.flatnonzero(~out) if out.any() else None for out in left_out]
