"""Decodes every image of a .rec file, to know before training which ones cannot be."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.ahead import map_ahead
from pipeline.classify import Progress
from pipeline.index import RecordIndex

_RUN = 256  # images a thread takes on at once


class Failure(NamedTuple):
    """An image that does not decode."""

    offset: int  # bytes: where its record starts
    label: int
    why: str


def decode_error(image: bytes | memoryview) -> str | None:
    """Why an encoded image does not decode without complaint, or None where it does.

    libjpeg forgives a JPEG that is cut off, and paints what is missing gray; here that counts as
    a failure.
    """
    try:
        if bytes(image[:2]) == b"\xff\xd8":
            _, _, colors, _ = simplejpeg.decode_jpeg_header(image)
            if colors not in ("CMYK", "YCCK"):  # simplejpeg cannot turn these into RGB
                simplejpeg.decode_jpeg(image)
                return None
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
    except UnidentifiedImageError:
        return f"no image: it starts with {bytes(image[:4]).hex()}"
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error).replace("\n", " ")
    return None


def find_undecodable(index: RecordIndex, progress: Progress | None = None) -> Iterator[Failure]:
    """The images of `index` that do not decode, in file order; on all cores.

    `progress` is told (images done, images in all).
    """

    def check(begin: int) -> list[Failure]:
        failures = []
        for i in range(begin, min(begin + _RUN, len(index))):
            why = decode_error(memoryview(index.image(i)))
            if why is not None:
                record = index.records[i]
                failures.append(Failure(int(record["offset"]), int(record["label"]), why))
        return failures

    begins = range(0, len(index), _RUN)
    for begin, failures in zip(begins, map_ahead(check, begins)):
        yield from failures
        if progress:
            progress(min(begin + _RUN, len(index)), len(index))
