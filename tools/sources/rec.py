"""Images from another .rec file, all or those that a list keeps or does not drop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.named_path import read_text
from pipeline.records.index import RecordIndex
from pipeline.records.manifest import read_names
from pipeline.records.recordio import RecordError
from pipeline.records.scan import scan_rec
from tools.sources.sample import Identity

BY = ("identity", "key", "offset")


def read_rec(
    rec: Path, *, keep: Path | None = None, drop: Path | None = None, by: str = "identity"
) -> Iterator[Identity]:
    """The identities in the order of their labels, the images in that of the file.

    Args:
        rec: a .rec file without damage, or the folder of its train.rec.
        keep: a text file of numbers, one a line, `#` before comments: only these are read.
        drop: the same, of those that are left out.
        by: what the numbers are: labels of identities, or the keys or offsets of records.

    Raises:
        RecordError: when the file is damaged, both lists are given, or a list holds what is no
            number or not in the file.
    """
    if keep and drop:
        raise RecordError("both --keep and --drop: give one list, the other follows from it")
    if rec.is_dir():
        rec = rec / "train.rec"
    found = scan_rec(rec)
    if found.summary.damaged_spans or found.summary.truncated:
        raise RecordError(
            f"{rec} is damaged in {found.summary.damaged_spans} places: mend it first, with "
            f"`python tools/rec2idx.py {rec} --repair FOLDER`"
        )
    labels, places = found.images["label"], {"offset": found.images["offset"]}
    places |= {"identity": labels, "key": found.keys[found.is_image]}
    taken = np.ones(len(labels), bool)
    if keep or drop:
        listed = np.isin(places[by], _read_list(keep or drop, places[by], by, rec))
        taken = listed if keep else ~listed
    index = RecordIndex(rec, found.images, found.summary, names=read_names(rec))
    yield from by_identity(index, np.flatnonzero(taken))


def by_identity(index: RecordIndex, chosen: np.ndarray) -> Iterator[Identity]:
    """The identities of (N,) record numbers in the order of their labels; the images as they lie.

    Raises RecordError for an image that cannot be read.
    """
    names, labels = index.names or (), index.labels(chosen)
    order = np.argsort(labels, kind="stable")
    chosen, labels = chosen[order], labels[order]
    for mine in np.split(chosen, np.flatnonzero(np.diff(labels)) + 1):
        if len(mine):
            label = int(index.labels(mine[:1])[0])
            yield Identity(
                names[label] if label < len(names) else str(label),
                [index.image(i).tobytes() for i in mine],
                [index.place(i) for i in mine],
            )


def _read_list(path: Path, present: np.ndarray, by: str, rec: Path) -> np.ndarray:
    numbers, lines = [], []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        text = text.partition("#")[0].strip()
        if not text:
            continue
        try:
            numbers.append(np.int64(int(text)))
        except (ValueError, OverflowError):
            raise RecordError(
                f"{path}, line {line}: found {text!r}, expected one number (--by {by})"
            ) from None
        lines.append(line)
    unknown = np.flatnonzero(~np.isin(numbers, present))
    if len(unknown):
        i = unknown[0]
        raise RecordError(
            f"{path}, line {lines[i]}: {numbers[i]} is the {by} of no image of {rec} "
            f"({len(unknown)} lines are not). Check that the list is for this file, and --by"
        )
    return np.array(numbers, np.int64)
