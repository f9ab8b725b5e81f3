"""Image files as people have them, and as attackers make them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import photos
from pipeline.photos import PhotoError, photo_pixels, read_image

CORNERS = np.zeros((40, 60, 3), np.uint8)  # told apart however it is turned
CORNERS[:20, :30] = (255, 0, 0)
CORNERS[:20, 30:] = (0, 255, 0)
CORNERS[20:, :30] = (0, 0, 255)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header announces so many pixels, with next to no content."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG2000"])
def test_every_format_gives_its_pixels(form):
    options = {"WEBP": {"lossless": True}}.get(form, {})
    np.testing.assert_array_equal(
        photo_pixels(encoded(Image.fromarray(CORNERS), form, **options)), CORNERS
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_turned_upright(orientation):
    """By the camera's note, as viewers do."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(CORNERS)
    if orientation > 1:
        stored = stored.transpose(undo[orientation])
    note = Image.Exif()
    note[0x0112] = orientation
    pixels = photo_pixels(encoded(stored, "JPEG", exif=note, quality=100, subsampling=0))
    assert pixels.shape == CORNERS.shape
    assert np.abs(pixels.astype(int) - CORNERS).mean() < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_garbled_note_is_no_note():
    photo = encoded(
        Image.fromarray(CORNERS), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95
    )
    assert photo_pixels(photo).shape == CORNERS.shape


def test_kinds_of_color():
    picture = Image.fromarray(CORNERS)
    grey = np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(
        photo_pixels(encoded(picture.convert("L"), "PNG")), np.repeat(grey[..., None], 3, axis=2)
    )
    np.testing.assert_array_equal(photo_pixels(encoded(picture.convert("P"), "PNG")), CORNERS)
    deep = (grey.astype(np.uint16) << 8) | 77
    np.testing.assert_array_equal(photo_pixels(encoded(Image.fromarray(deep), "PNG"))[..., 0], grey)
    cmyk = photo_pixels(encoded(picture.convert("CMYK"), "JPEG", quality=100, subsampling=0))
    assert np.abs(cmyk.astype(int) - CORNERS).mean() < 5
    wide = Image.fromarray(grey.astype(np.int32) << 8)  # as some Pillow reads 16 bits
    np.testing.assert_array_equal(photo_pixels(encoded(wide, "TIFF"))[..., 0], grey)


def test_what_is_transparent_is_black():
    """Whatever color is hidden there; a palette may have transparent colors, too."""
    cutout = Image.fromarray(
        np.dstack([np.full((4, 4, 3), 200, np.uint8), np.eye(4, dtype=np.uint8) * 255])
    )
    expected = np.repeat((np.eye(4) * 200).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(photo_pixels(encoded(cutout, "PNG")), expected)
    palette = Image.new("P", (4, 4))
    palette.putpalette([200, 200, 200, 90, 90, 90])
    pixels = photo_pixels(encoded(palette, "PNG", transparency=0))
    assert not pixels.any()


@pytest.mark.parametrize("sides", [(100_000, 100_000), (2**31 - 1, 1), (2**16, 2**11 + 1)])
def test_a_header_of_billions_of_pixels_is_not_believed(sides):
    with pytest.raises(PhotoError, match="scale it down"):
        photo_pixels(png_of(*sides))


def test_text_that_unpacks_to_gigabytes(tmp_path):
    """A chunk of zeros that is a thousand times larger unpacked."""
    text = b"Comment\0\0" + zlib.compress(bytes(20_000_000), 9)
    bomb = (
        struct.pack(">I", len(text))
        + b"zTXt"
        + text
        + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    )
    whole = encoded(Image.fromarray(CORNERS), "PNG")
    try:
        pixels = photo_pixels(whole[:33] + bomb + whole[33:])
    except PhotoError:
        return
    np.testing.assert_array_equal(pixels, CORNERS)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "GIF"])
def test_a_photo_that_is_cut_off_is_an_error(form):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), form)
    with pytest.raises(PhotoError, match="copy it again"):
        photo_pixels(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"hello, world", "starts with 68 65 6c 6c"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image that can be read here"),
        (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "numbers, not colors"),
    ],
)
def test_what_is_no_photo(content, message):
    with pytest.raises(PhotoError, match=message):
        photo_pixels(content)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
)
def test_any_damage_is_an_error_in_words(form, changes, left):
    content = bytearray(encoded(Image.fromarray(CORNERS), form))
    for place, value in changes:
        content[int(place * len(content))] = value
    try:
        pixels = photo_pixels(bytes(content[: int(len(content) * left) + 1]))
    except PhotoError:
        return
    assert pixels.ndim == 3
    assert pixels.dtype == np.uint8


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch):
    file = tmp_path / "a.jpg"
    file.write_bytes(bytes(100))
    monkeypatch.setattr(photos, "MOST_BYTES", 99)
    assert read_image(file) == (b"", "larger than 0 MB")


def test_a_picture_to_convert_is_held_to_the_same_limit(tmp_path: Path, monkeypatch):
    file = tmp_path / "a.gif"
    Image.fromarray(CORNERS).save(file)
    assert read_image(file)[1] is None
    monkeypatch.setattr(photos, "MOST_PIXELS", 10)
    assert read_image(file) == (b"", "not read by Pillow (.gif)")
