"""What an encoded image is, by its bytes, and how to make a plain JPEG of an unusual one."""

from __future__ import annotations

import io

import simplejpeg
from PIL import Image

from facestream import UserError

_STARTS = {
    b"\xff\xd8": "jpeg",
    b"\x89PNG": "png",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start-of-frame markers, less their neighbors
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length

UNUSUAL = ("progressive jpeg", "cmyk jpeg")
EXTENSIONS = {  # else .jpg
    "png": ".png",
    "bmp": ".bmp",
    "webp": ".webp",
    "tiff": ".tif",
    "unknown": ".bin",
}


def image_kind(image: bytes | memoryview) -> str:
    """`jpeg` (baseline), `progressive jpeg`, `cmyk jpeg`, or another format's name, or `unknown`.

    Other formats are `png`, `bmp`, `webp` and `tiff`. A JPEG is CMYK when it has four components,
    progressive or not. Only headers are looked at.
    """
    start = bytes(image[:12])
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return "webp"
    kind = next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), "unknown")
    return _jpeg_kind(image) if kind == "jpeg" else kind


def _jpeg_kind(image: bytes | memoryview) -> str:
    at = 2
    while at + 9 < len(image) and image[at] == 0xFF:
        marker = image[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAMES:
            if image[at + 9] == 4:
                return "cmyk jpeg"
            return "progressive jpeg" if marker in _PROGRESSIVE else "jpeg"
        else:
            at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    return "unknown"


def image_size(image: bytes | memoryview) -> tuple[int, int] | None:
    """(height, width) in pixels, by the header; None where it does not say."""
    try:
        if bytes(image[:2]) == b"\xff\xd8":
            return simplejpeg.decode_jpeg_header(image)[:2]
        with Image.open(io.BytesIO(image)) as opened:
            return opened.height, opened.width
    except Exception:  # Pillow's readers of damaged files fail in every way there is
        return None


def to_baseline(image: bytes | memoryview) -> bytes:
    """The image as a baseline RGB JPEG (quality 95, colors at full resolution).

    Raises UserError where it does not decode.
    """
    stored = io.BytesIO()
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.convert("RGB").save(stored, "JPEG", quality=95, subsampling=0)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the image does not decode: {error}") from error
    return stored.getvalue()
