"""What is trained on of an archive: its images that have a label, in the order that they lie in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from facestream import UserError
from pipeline.containers.content import NO_TEXTS, Content, summarize, to_records
from pipeline.containers.stored import NO_LABEL, Stored
from pipeline.containers.texts import Texts
from pipeline.passed_over import Passed, PassedOver
from pipeline.photos import MOST_BYTES
from pipeline.records.recordio import RecordError
from pipeline.records.scan import Progress

_COMMAND_LINE = "-column"  # of tools that read such archives, too
_MOST = 1 << 40  # a label; far more than any set has


@contextmanager
def columns_as_named() -> Iterator[None]:
    """An error that advises to name a column says what that is where a set is trained on."""
    try:
        yield
    except UserError as error:
        if _COMMAND_LINE not in str(error):
            raise
        raise RecordError(
            f"{error}. That is for tools: to be trained on as it lies, a set has its labels under "
            "the name label, or in the only place where they can be. Rename what has them to "
            "label, or pack the set with tools/pack_rec.py"
        ) from error


def scan_archive(
    path: str, stored: Stored, passed_over: PassedOver, progress: Progress | None = None
) -> Content:
    """Of all images of an archive.

    Those without a label are passed over; those that cannot be read are damage.

    Args:
        path: as messages call it.

    Raises:
        RecordError: no image, no labels, or labels that are no identities.
    """
    if not len(stored.names):
        raise RecordError(f"{path} holds no images: expected JPEGs, PNGs and the like in it")
    spans, labels = stored.spans(progress), stored.labels()
    if labels is None:
        raise RecordError(
            f"{path} does not say who is who: its {len(stored.names)} images have no labels. "
            f"{stored.would_label}"
        )
    numbers = labels.numbers
    for place in np.flatnonzero((numbers < 0) & (numbers != NO_LABEL) | (numbers >= _MOST))[:1]:
        raise RecordError(
            f"{path}: {stored.names[place]} has the label {numbers[place]}; an identity is a whole "
            f"number from 0 to {_MOST - 1}. Number them from 0, or pack the set with "
            "tools/pack_rec.py, which does so"
        )
    for place in np.flatnonzero(numbers == NO_LABEL).tolist():
        passed_over.add(Passed("image without a label", f"{path}: {stored.names[place]}"))
    lost = (spans.length == 0) | (spans.length > MOST_BYTES)
    damaged = [
        (int(spans.offset[place]), int(spans.length[place]), f"{stored.names[place]} is no image")
        for place in np.flatnonzero(lost & (numbers != NO_LABEL)).tolist()
    ]
    kept = np.flatnonzero(~lost & (numbers != NO_LABEL))
    if not len(kept):
        raise RecordError(f"{path} holds no image that can be read, with a label")
    order = kept[np.argsort(spans.offset[kept], kind="stable")]
    records = to_records(*(of[order] for of in (*spans, numbers)))
    paths = stored.names.take(order)
    if (records["offset"][1:] == records["offset"][:-1]).any():
        raise RecordError(f"{path} is damaged: two of its images begin at one place. Pack it again")
    names = NO_TEXTS if labels.names is None else Texts.of(labels.names)
    return Content(records, summarize(records, damaged), names, paths)
