"""The images of a test set, by place: what the embedding loop loads and reports show."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from evaluation.embedding import Load, decoder
from facestream import UserError
from pipeline.named_path import mendable
from pipeline.records.recordio import RecordError


class ImagesError(UserError):
    """Images of a test set that cannot be used: says which, why, and how to mend it."""


@dataclass(frozen=True)
class Images:
    """N face crops of one size.

    Attributes:
        names: of each, for errors, groups and pictures; unique.
        read: a place to the encoded image as it is stored. Raises RecordError where it cannot be
            read.
        load: places to their pixels and faults; see evaluation/embedding.py. It may do more than
            decode: crop by landmarks, degrade.
        size: height and width of what `load` gives.
        fingerprint: of the images and of all that `load` does: kept embeddings are known by it.
    """

    names: Sequence[str]
    read: Callable[[int], bytes]
    load: Load
    size: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, place: int) -> bytes | None:
        """The image as the network sees it, as JPEG; None where it is damaged."""
        pixels, faults = self.load(range(place, place + 1))
        if faults:
            return None
        file = io.BytesIO()
        Image.fromarray(pixels[0]).save(file, format="jpeg", quality=90)
        return file.getvalue()


def encoded_images(
    encoded: Sequence[bytes] | Mapping[int, bytes], *, names: Sequence[str], size: int
) -> Images:
    """Images that are in memory; of a rank that embeds a share of them, that share is enough.

    Args:
        encoded: JPEG, PNG and the like, by place.
        names: of all images.
    """
    places = range(len(encoded)) if isinstance(encoded, Sequence) else sorted(encoded)
    digest = hashlib.sha256()
    for place in places:
        digest.update(hashlib.sha256(encoded[place]).digest())

    def read(place: int) -> bytes:
        return bytes(encoded[place])

    return Images(names, read, _decoding(read, size), size, digest.hexdigest())


def image_files(paths: Sequence[Path], *, names: Sequence[str], size: int) -> Images:
    """Images in files of their own, known by name, size and time of change.

    Raises:
        ImagesError: a file that is not there or may not be read.
    """
    digest = hashlib.sha256()
    for path, name in zip(paths, names):
        try:
            about = path.stat()
        except OSError as error:
            raise ImagesError(f"{path}: {mendable(error) or error}") from error
        digest.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())

    def read(place: int) -> bytes:
        try:
            return paths[place].read_bytes()
        except OSError as error:
            raise RecordError(f"cannot be read: {mendable(error) or error}") from error

    return Images(names, read, _decoding(read, size), size, digest.hexdigest())


def require_size(images: Images, places: Sequence[int], *, found_in: str | Path) -> None:
    """Raise ImagesError where the header of one of these images says another size."""
    for place in places:
        if fault := _size_fault(images.read(place), images.size):
            raise ImagesError(f"{found_in}: image {images.names[place]} {fault}")


def _decoding(read: Callable[[int], bytes], size: int) -> Load:
    return decoder(lambda places: [partial(read, place) for place in places], image_size=size)


def _size_fault(encoded: bytes, size: int) -> str:
    """What is wrong with an image by its header; nothing where it has the size."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return f"cannot be read ({error}): pack the set again"
    if (width, height) == (size, size):
        return ""
    return (
        f"has {width}×{height} pixels, not {size}×{size} (image_size): pack the set "
        "again in that size, or leave it out of the paths"
    )
