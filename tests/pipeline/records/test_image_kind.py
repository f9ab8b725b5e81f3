"""What an image is, by its headers; what is unusual becomes a plain JPEG of the same picture."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.records.image_kind import image_kind, image_size, to_baseline

# A smooth picture, so that two encodings of it are near.
RAMP = np.stack(np.broadcast_arrays(*np.ogrid[0:240:6, 0:240:5], 128), -1).astype(np.uint8)


def encode(mode: str = "RGB", form: str = "JPEG", **options: object) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(RAMP).convert(mode).save(stored, form, **options)
    return stored.getvalue()


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (encode(), "jpeg"),
        (encode("L"), "jpeg"),
        (encode(exif=b"Exif\0\0" + bytes(300)), "jpeg"),
        (encode(progressive=True), "progressive jpeg"),
        (encode("CMYK"), "cmyk jpeg"),
        (encode("CMYK", progressive=True), "cmyk jpeg"),
        (encode(form="PNG"), "png"),
        (encode(form="WEBP"), "webp"),
        (encode(form="BMP"), "bmp"),
        (encode(form="TIFF"), "tiff"),
        (encode()[:20], "unknown"),
        (b"\xff\xd8\xff\xff" + encode()[2:][1:], "jpeg"),  # a fill byte before a marker
        (b"", "unknown"),
        (b"GIF89a", "unknown"),
    ],
)
def test_the_kind_is_what_the_headers_say(image, kind):
    assert image_kind(image) == kind
    assert image_kind(memoryview(image)) == kind


@given(st.binary(max_size=40), st.integers(0, 300))
def test_no_bytes_confuse_it(noise, cut):
    for image in (noise, b"\xff\xd8" + noise, encode()[:cut] + noise):
        assert isinstance(image_kind(image), str)


@pytest.mark.parametrize("image", [encode(progressive=True), encode("CMYK")])
def test_the_baseline_jpeg_shows_the_same_picture(image):
    plain = to_baseline(image)
    assert image_kind(plain) == "jpeg"
    shown = np.asarray(Image.open(io.BytesIO(plain)), np.int32)
    assert np.abs(shown - RAMP).mean() < 4


@pytest.mark.parametrize("image", [encode(progressive=True)[:-300], b"\xff\xd8", b""])
def test_what_does_not_decode_is_refused(image):
    with pytest.raises(ValueError, match="does not decode"):
        to_baseline(image)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_a_size_is_height_and_width_by_the_header(form):
    assert image_size(encode(form=form)) == RAMP.shape[:2]


@given(st.sampled_from(["JPEG", "PNG", "TIFF"]), st.integers(0, 60), st.integers(0, 255))
def test_what_is_garbled_has_a_size_or_none(form, at, byte):
    image = bytearray(encode(form=form))
    image[at] = byte
    assert image_size(bytes(image[: at + 40])) is None or image_size(bytes(image[: at + 40]))
    assert image_size(b"no image") is None
