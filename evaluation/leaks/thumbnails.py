"""Small gray pictures, in which copies of a photograph are looked for."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from facestream import UserError
from pipeline.jpeg import FORMATS

SIDE = 56  # pixels; a face crop of 112 is halved

_MOST_PIXELS = 1 << 24  # of an image that libjpeg cannot scale while it decodes


class ThumbnailError(UserError):
    """An image that cannot be decoded: its text says why."""


def thumbnail(encoded: bytes) -> np.ndarray:
    """(SIDE, SIDE) uint8, whatever the size of the image; of a JPEG no more is decoded than needed.

    Raises:
        ThumbnailError: it cannot be decoded.
    """
    try:
        gray = _decode_jpeg(encoded, SIDE)
        if gray.shape == (SIDE, SIDE):
            return gray
        return _scaled(Image.fromarray(_decode_jpeg(encoded, 2 * SIDE)))
    except ValueError:  # no JPEG, or one that libjpeg warns of
        return _otherwise(encoded)


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) uint8 RGB to (B, SIDE, SIDE) uint8."""
    grays = [_scaled(Image.fromarray(image).convert("L")) for image in pixels]
    return np.stack(grays) if grays else np.empty((0, SIDE, SIDE), np.uint8)


def resampling(start: float, length: float, *, cells: int, pixels: int) -> np.ndarray:
    """(cells, pixels) weights that average a row of pixels into cells.

    Args:
        start, length: the part of the row, in pixels, that the cells divide among them. Beyond its
            ends the row goes on with its last pixel.
    """
    edges = start + length / cells * np.arange(cells + 1)
    begins = np.arange(pixels, dtype=float)
    ends = begins + 1
    begins[0], ends[-1] = -np.inf, np.inf
    overlap = np.minimum(edges[1:, None], ends) - np.maximum(edges[:-1, None], begins)
    return (overlap.clip(min=0) * cells / length).astype(np.float32)


def _decode_jpeg(encoded: bytes, side: int) -> np.ndarray:
    """(H, W) uint8, as little over `side` as libjpeg can scale it to."""
    return simplejpeg.decode_jpeg(encoded, "GRAY", min_height=side, min_width=side)[:, :, 0]


def _scaled(gray: Image.Image) -> np.ndarray:
    return np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX))


def _otherwise(encoded: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ThumbnailError(f"has {image.width}×{image.height} pixels, far too many")
            return _scaled(image.convert("L"))
    except ThumbnailError:
        raise
    except Exception as error:  # Pillow's readers of damaged files fail in every way there is
        start = bytes(encoded[:4]).hex(" ")
        raise ThumbnailError(f"cannot be decoded (it starts with {start})") from error
