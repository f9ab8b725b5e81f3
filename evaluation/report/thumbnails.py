"""Pictures of people within a page: small JPEGs without what cameras write into files."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from xml.etree.ElementTree import Element

from PIL import Image

from evaluation.report.element import element
from pipeline.photos import PhotoError, photo_pixels

SIDE = 112  # pixels
_QUALITY = 82

Pictures = Callable[[str, str], bytes | None]


class Thumbnails:
    """Makes thumbnails and counts those that a page holds.

    Args:
        pictures: (set, name of an image) to its encoded bytes, None for one that there is not;
            without it there is no picture at all.
    """

    def __init__(self, pictures: Pictures | None) -> None:
        self._pictures = pictures
        self._made: dict[tuple[str, str], str | None] = {}

    @property
    def wanted(self) -> bool:
        """Whether pictures may be shown."""
        return self._pictures is not None

    @property
    def count(self) -> int:
        """How many different pictures have been shown."""
        return sum(uri is not None for uri in self._made.values())

    def show(self, place: str, name: str) -> Element | None:
        """The picture, or a box that says there is none; None where pictures are not wanted."""
        if self._pictures is None:
            return None
        if (place, name) not in self._made:
            encoded = self._pictures(place, name)
            self._made[place, name] = None if encoded is None else _data_uri(encoded)
        uri = self._made[place, name]
        if uri is None:
            return element("span", "no picture", class_="no-picture")
        return element("img", src=uri, alt=name, width=SIDE, height=SIDE, loading="lazy")


def _data_uri(encoded: bytes) -> str | None:
    """None for what is no picture, or damaged, or too large to be opened."""
    try:
        small = Image.fromarray(photo_pixels(encoded))
    except PhotoError:
        return None
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
