"""Decodes every image of a .rec file, to know before training which ones cannot be."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.ahead import map_ahead
from pipeline.records.index import RecordIndex
from pipeline.records.scan import Progress

_RUN = 256  # images a thread takes on at once


class Failure(NamedTuple):
    """An image that does not decode."""

    offset: int  # bytes: where its record starts
    label: int
    why: str


def decode_error(image: bytes | memoryview, *, size: int | None = None) -> str | None:
    """Why an encoded image does not decode without complaint, or None where it does.

    libjpeg forgives a JPEG that is cut off, and paints what is missing gray; here that counts as
    a failure.

    Args:
        size: pixels; an image that is not size × size is complained about, too.
    """
    try:
        if bytes(image[:2]) == b"\xff\xd8":
            height, width, colors, _ = simplejpeg.decode_jpeg_header(image)
            if colors not in ("CMYK", "YCCK"):  # simplejpeg cannot turn these into RGB
                simplejpeg.decode_jpeg(image)
                return _size_error(width, height, size)
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
            return _size_error(*opened.size, size)
    except UnidentifiedImageError:
        return f"no image: it starts with {bytes(image[:4]).hex()}"
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error).replace("\n", " ")


def _size_error(width: int, height: int, size: int | None) -> str | None:
    if size is None or width == height == size:
        return None
    return f"{width} x {height} pixels, not {size} x {size}"


def find_undecodable(
    index: RecordIndex, progress: Progress | None = None, *, size: int | None = None
) -> Iterator[Failure]:
    """The images of `index` that do not decode, or to another size, in file order; on all cores.

    Args:
        progress: is called with (images done, images in all).
        size: as in `decode_error`.
    """

    def check(begin: int) -> list[Failure]:
        failures = []
        for i in range(begin, min(begin + _RUN, len(index))):
            why = decode_error(memoryview(index.image(i)), size=size)
            if why is not None:
                record = index.records[i]
                failures.append(Failure(int(record["offset"]), int(record["label"]), why))
        return failures

    begins = range(0, len(index), _RUN)
    for begin, failures in zip(begins, map_ahead(check, begins)):
        yield from failures
        if progress:
            progress(min(begin + _RUN, len(index)), len(index))
