"""Images made square: which pixels they then are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.records.image_kind import image_kind, image_size
from tools.sources.reshape import ReshapeError, reshape

NOISE = np.random.default_rng(0).integers(0, 256, (12, 8, 3), np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, kind, **options)
    return stored.getvalue()


def decoded(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


def test_a_crop_is_the_middle_untouched():
    assert np.array_equal(decoded(reshape(encoded(NOISE), crop=6)), NOISE[3:9, 1:7])


def test_shrinking_averages_what_a_pixel_covers_and_takes_the_middle():
    """The shorter side of 8 becomes 4; of the longer one four rows of two are left."""
    areas = NOISE[2:10].reshape(4, 2, 4, 2, 3).mean((1, 3))
    found = decoded(reshape(encoded(NOISE), resize=4)).astype(float)
    assert np.abs(found - areas).max() <= 1, "rounded twice"


def test_both_crop_first():
    areas = NOISE[2:10].reshape(4, 2, 4, 2, 3).mean((1, 3))
    found = decoded(reshape(encoded(NOISE), crop=8, resize=4)).astype(float)
    assert np.abs(found - areas).max() <= 1


def test_what_is_small_is_enlarged_between_its_pixels():
    steps = np.repeat(np.array([[0, 200]], np.uint8)[..., None], 3, axis=2).repeat(2, axis=0)
    found = decoded(reshape(encoded(steps), resize=8))
    assert found.shape == (8, 8, 3)
    assert 0 < found[4, 4, 0] < 200


@pytest.mark.parametrize("how", [{"crop": 8}, {"resize": 8}, {"crop": 8, "resize": 8}])
def test_what_has_the_size_keeps_its_bytes(how):
    image = encoded(NOISE[:8], "JPEG")
    assert reshape(image, **how) is image


def test_a_jpeg_stays_one_and_all_else_becomes_png():
    smooth = np.full((64, 64, 3), 90, np.uint8)
    jpeg = reshape(encoded(smooth, "JPEG", progressive=True), resize=32)
    assert (image_kind(jpeg), image_size(jpeg)) == ("jpeg", (32, 32))
    assert np.abs(decoded(jpeg).astype(int) - 90).max() <= 2
    assert image_kind(reshape(encoded(smooth, "BMP"), resize=32)) == "png"


def test_16_bits_keep_their_upper_ones_as_in_training():
    deep = np.full((8, 8), 0x8040, np.uint16)
    assert (decoded(reshape(encoded(deep), crop=4)) == 0x80).all()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (encoded(NOISE), "smaller than --crop 9"),
        (encoded(NOISE)[:40], "does not decode"),
        (b"", "does not decode"),
    ],
)
def test_what_cannot_be_made_so_is_refused(image, reason):
    with pytest.raises(ReshapeError, match=reason):
        reshape(image, crop=9)
