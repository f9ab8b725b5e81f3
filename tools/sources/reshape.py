"""Images made square, of the size that training takes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from facestream import UserError
from pipeline.jpeg import in_8_bits
from pipeline.photos import encode
from pipeline.records.image_kind import image_size


class ReshapeError(UserError):
    """An image that cannot be made so: the reason, without its place."""


def reshape(image: bytes, *, crop: int | None = None, resize: int | None = None) -> bytes:
    """The image cropped, then resized; the bytes as they are where it has that size already.

    A JPEG stays one (quality 95, colors at full resolution), any other becomes a PNG. Its pixels
    are those that training would see: a camera's note that they are turned counts here no more
    than there.

    Args:
        image: encoded.
        crop: pixels; the middle crop × crop of the image is taken, nothing is scaled.
        resize: pixels; the shorter side is scaled to it, by areas where that shrinks and linearly
            where it enlarges, and the middle of the longer one is taken.

    Raises:
        ReshapeError: where the image does not decode, or a side is shorter than `crop`.
    """
    target = resize or crop
    if image_size(image) == (target, target) and crop in (None, target):
        return image
    try:
        with Image.open(io.BytesIO(image)) as opened:
            form, pixels = opened.format, Image.fromarray(in_8_bits(opened))
    except Exception as error:  # Pillow's readers of damaged files fail in every way there is
        raise ReshapeError("does not decode") from error
    width, height = pixels.size
    if crop and min(width, height) < crop:
        raise ReshapeError(f"smaller than --crop {crop}")
    if crop:
        left, top = (width - crop) // 2, (height - crop) // 2
        pixels = pixels.crop((left, top, left + crop, top + crop))
    if resize:
        shrinks = min(pixels.size) > resize
        method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
        pixels = ImageOps.fit(pixels, (resize, resize), method)
    return encode(np.asarray(pixels), jpeg=form == "JPEG")
