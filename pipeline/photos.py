"""Image files as people have them: safe to open, turned upright, 8 bits of red, green and blue.

Nothing of a file is believed before it is checked: what its name says, how many pixels its header
announces, whether it is whole.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from facestream import UserError
from pipeline.jpeg import FORMATS, in_8_bits
from pipeline.records.image_kind import image_kind

# What training decodes: packed as it is, whatever its bytes turn out to be.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
)
# What Pillow can open, with a plugin for some, and training cannot. None of them runs a program, as
# Pillow does for PostScript.
CONVERTED = {
    ".gif": "GIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
}
_WITHOUT_SUFFIX = ("PPM", *dict.fromkeys(CONVERTED.values()))

MOST_PIXELS = 2**27  # some 130 million, 400 MB of memory: more than cameras make
MOST_BYTES = 2**29  # of a file
Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # where Pillow begins to warn of attacks, we refuse


class PhotoError(UserError):
    """An image that cannot be used: what was found and how to mend it, without the image's name."""


def read_image(path: Path) -> tuple[bytes, str | None]:
    """The bytes of an image file as they can be packed; or none, and why it is passed over.

    They are the file's own, or those of a PNG of the same pixels. A file without a suffix is what
    its first bytes say.

    Raises OSError where it cannot be read.
    """
    suffix = path.suffix.lower()
    if not os.path.exists(path):  # as which names count that no file can have
        return b"", "broken link" if os.path.islink(path) else "missing file"
    if not path.is_file():  # a pipe would be waited for
        return b"", "no file"
    if suffix and suffix not in SUFFIXES and suffix not in CONVERTED:
        return b"", f"no image ({suffix})"
    if path.stat().st_size > MOST_BYTES:
        return b"", f"larger than {MOST_BYTES >> 20} MB"
    content = path.read_bytes()
    if not content:
        return b"", "empty file"
    if suffix in SUFFIXES or (not suffix and image_kind(content) != "unknown"):
        return content, None
    formats = [CONVERTED[suffix]] if suffix else _WITHOUT_SUFFIX
    png = _as_png(content, formats)
    if png is None:
        return b"", f"not read by Pillow ({suffix})" if suffix else "no image, and no suffix"
    return png, None


def photo_pixels(encoded: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB, the first picture of the file, as a viewer shows it.

    A camera's note of how it was held (EXIF) is honored, what is transparent is black, of 16 bits
    the upper ones are taken, CMYK and palettes become RGB.

    Raises:
        PhotoError: no image, one that is cut off or damaged, or of more than MOST_PIXELS.
    """
    Image.init()
    known = [name for name in (*FORMATS, *_WITHOUT_SUFFIX) if name in Image.OPEN]
    try:
        # Pillow's warnings are left to Python, which tells each once: to silence them here would
        # silence other threads, too.
        with Image.open(io.BytesIO(encoded), formats=known) as opened:
            _check_pixels(opened)
            return _upright(opened)
    except PhotoError:
        raise
    except Image.DecompressionBombError:
        raise _too_large("more than Pillow opens") from None
    except Exception as error:  # Pillow's readers of damaged files fail in every way there is
        raise PhotoError(_what_is_wrong(encoded, error)) from error


def encode(pixels: np.ndarray, *, jpeg: bool) -> bytes:
    """(H, W, 3) uint8 as a JPEG (quality 95, colors at full resolution), or as a PNG."""
    stored = io.BytesIO()
    if jpeg:
        Image.fromarray(pixels).save(stored, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(pixels).save(stored, "PNG")
    return stored.getvalue()


def _upright(opened: Image.Image) -> np.ndarray:
    turned = _turned(opened)
    if turned.mode in ("F", "I"):  # 32 bits a pixel
        turned = _of_16_bits(np.asarray(turned))
    elif turned.has_transparency_data:
        over = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", over.size, "black"), over)
    return in_8_bits(turned)


def _of_16_bits(values: np.ndarray) -> Image.Image:
    """As which some Pillow reads a PNG of 16 bits."""
    if values.dtype.kind != "i" or values.min() < 0 or not 255 < values.max() < 2**16:
        raise PhotoError(
            "holds numbers, not colors (32 bits a pixel); expected 8 or 16 bits. Save it again as "
            "JPEG or PNG"
        )
    return Image.fromarray(values.astype(np.uint16))


def _turned(opened: Image.Image) -> Image.Image:
    opened.load()
    try:
        return ImageOps.exif_transpose(opened)
    except Exception:  # of a garbled note nothing is known
        return opened


def _check_pixels(opened: Image.Image) -> None:
    width, height = opened.size
    if width * height > MOST_PIXELS:
        raise _too_large(f"{width}×{height}")


def _too_large(found: str) -> PhotoError:
    return PhotoError(
        f"has {found} pixels, expected at most {MOST_PIXELS / 1e6:.0f} million: scale it down"
    )


def _what_is_wrong(encoded: bytes, error: Exception) -> str:
    if not encoded:
        return "is an empty file; copy it again"
    if isinstance(error, Image.UnidentifiedImageError):
        start = bytes(encoded[:4]).hex(" ")
        return f"is no image that can be read here (it starts with {start}); save it as JPEG or PNG"
    return f"is damaged or cut off ({error}); copy it again"


def _as_png(content: bytes, formats: Sequence[str]) -> bytes | None:
    """The first picture of the file, losslessly; None where it is in none of these formats."""
    Image.init()
    stored = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures that are large, or garbled in part
            known = [name for name in formats if name in Image.OPEN]
            with Image.open(io.BytesIO(content), formats=known) as opened:
                _check_pixels(opened)
                opened.convert("RGB").save(stored, "PNG")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return stored.getvalue()
