"""The images of a .rec as evaluation takes them, to be embedded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from evaluation.embedding import decoder
from evaluation.images import Images, ImagesError
from pipeline.records.image_kind import image_size
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError

_LOOKED_AT = 8  # images, for their size


def training_images(index: RecordIndex, *, size: int) -> Images:
    """All images of a .rec, named by their records' offsets.

    Raises:
        ImagesError: images from here and there are all of another size.
    """
    sizes = sizes_found(index)
    if sizes and (size, size) not in sizes:
        found = ", ".join(f"{width}×{height}" for height, width in sizes)
        raise ImagesError(
            f"{index.path}: its images are {found} pixels, and the model takes {size}×{size}: name "
            f"a model of that size, or pack them again: `python tools/pack_rec.py {index.path} NEW "
            f"--resize {size}`"
        )
    return Images(
        names=_Offsets(index.records["offset"]),
        read=lambda place: bytes(index.image(place)),
        load=decoder(
            lambda places: index.sources(np.arange(places.start, places.stop)), image_size=size
        ),
        size=size,
        fingerprint=index.file.fingerprint,
    )


def stored_picture(index: RecordIndex, offset: int) -> bytes | None:
    """The encoded image of the record that starts there; None where it cannot be read."""
    try:
        return bytes(index.image(int(np.searchsorted(index.records["offset"], offset))))
    except RecordError:
        return None


def sizes_found(index: RecordIndex) -> list[tuple[int, int]]:
    """(height, width) of images from here and there, each once; none where no header says it."""
    sizes = set()
    for place in np.unique(np.linspace(0, len(index) - 1, _LOOKED_AT).astype(int)).tolist():
        try:
            sizes.add(image_size(bytes(index.image(place))))
        except RecordError:  # it is counted as damaged later
            continue
    return sorted(sizes - {None})


class _Offsets(Sequence[str]):
    """Names of millions of images, made when they are asked for."""

    def __init__(self, offsets: np.ndarray) -> None:
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [f"record {offset}" for offset in self._offsets[place]]
        return f"record {self._offsets[place]}"
