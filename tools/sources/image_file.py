"""One image file as it can be packed: its own bytes, or those of a PNG of the same pixels."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

from PIL import Image

from pipeline.photos import SUFFIXES
from pipeline.records.image_kind import image_kind

# What Pillow can open, with a plugin for some, and training cannot. None of them runs a program, as
# Pillow does for PostScript.
_CONVERTED = {
    ".gif": "GIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
}
_WITHOUT_SUFFIX = ("PPM", *dict.fromkeys(_CONVERTED.values()))


def read_image(path: Path) -> tuple[bytes, str | None]:
    """The bytes to pack of a file; or none, and the reason why it is passed over.

    A file without a suffix is what its first bytes say.

    Raises OSError where it cannot be read.
    """
    suffix = path.suffix.lower()
    if not os.path.exists(path):  # as which names count that no file can have
        return b"", "broken link" if os.path.islink(path) else "missing file"
    if not path.is_file():  # a pipe would be waited for
        return b"", "no file"
    if suffix and suffix not in SUFFIXES and suffix not in _CONVERTED:
        return b"", f"no image ({suffix})"
    content = path.read_bytes()
    if not content:
        return b"", "empty file"
    if suffix in SUFFIXES or (not suffix and image_kind(content) != "unknown"):
        return content, None
    formats = [_CONVERTED[suffix]] if suffix else _WITHOUT_SUFFIX
    png = _as_png(content, formats)
    if png is None:
        return b"", f"not read by Pillow ({suffix})" if suffix else "no image, and no suffix"
    return png, None


def _as_png(content: bytes, formats: tuple[str, ...] | list[str]) -> bytes | None:
    """The first picture of the file, losslessly; None where it is in none of these formats."""
    Image.init()
    stored = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures that are large, or garbled in part
            known = [name for name in formats if name in Image.OPEN]
            with Image.open(io.BytesIO(content), formats=known) as opened:
                opened.convert("RGB").save(stored, "PNG")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return stored.getvalue()
