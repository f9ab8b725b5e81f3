"""Images from a .zip of identity folders or from an LMDB, as training reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.containers.forms import form_of
from pipeline.containers.open_records import FORMS
from pipeline.passed_over import PassedOver
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError
from tools.sources.rec import by_identity
from tools.sources.sample import Identity


def read_archive(path: Path, passed_over: PassedOver) -> Iterator[Identity]:
    """The identities in the order of their labels, the images in the order that they lie in.

    Images without a label are passed over.

    Raises:
        RecordError: an archive that is damaged, or has no images or no labels.
    """
    form = FORMS[form_of(path)]
    found = form.scan(path, passed_over, None)
    if found.summary.damaged_spans:
        raise RecordError(
            f"{path} is damaged in {found.summary.damaged_spans} places: mend it first, with "
            f"`python tools/rec2idx.py {path} --verify --repair FOLDER`"
        )
    store = form.store(path, found)
    index = RecordIndex(path, found.records, found.summary, file=store, names=found.names)
    yield from by_identity(index, np.arange(len(index)))
