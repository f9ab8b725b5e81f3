"""Thumbnails: the same picture, in whatever size and format it is stored."""

import io

import numpy as np
import pytest
from PIL import Image

from evaluation.leaks.thumbnails import SIDE, ThumbnailError, resampling, thumbnail, thumbnails
from synthetic import encode_jpeg, render
from tests.evaluation.leaks.planted import encode, scaled

FACE = render(3, 0)


def stored(kind: str, image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "encoded",
    [
        encode_jpeg(FACE),
        encode(scaled(FACE, 100)),
        encode(scaled(FACE, 224)),
        stored("PNG", Image.fromarray(FACE)),
        stored("JPEG", Image.fromarray(FACE).convert("CMYK")),
        stored("WEBP", Image.fromarray(FACE)),
    ],
)
def test_every_format_and_size_gives_about_the_same_thumbnail(encoded):
    (expected,) = thumbnails(FACE[None])
    found = thumbnail(encoded)
    assert found.shape == (SIDE, SIDE)
    assert np.abs(found.astype(int) - expected).mean() < 4


def test_an_image_of_another_shape_is_filled_in():
    assert thumbnail(encode(FACE[:, :90])).shape == (SIDE, SIDE)


@pytest.mark.parametrize("encoded", [b"", b"no image", encode_jpeg(FACE)[:600]])
def test_what_cannot_be_decoded_is_said(encoded):
    with pytest.raises(ThumbnailError, match="cannot be decoded"):
        thumbnail(encoded)


def test_an_image_of_far_too_many_pixels_is_not_decoded():
    bomb = stored("PNG", Image.new("1", (5000, 5000)))
    with pytest.raises(ThumbnailError, match="far too many"):
        thumbnail(bomb)


def test_resampling_averages_and_repeats_the_edge():
    weights = resampling(0, 8, cells=4, pixels=8)
    assert weights @ np.arange(8) == pytest.approx([0.5, 2.5, 4.5, 6.5])
    beyond = resampling(-2, 8, cells=4, pixels=8)
    assert beyond @ np.arange(8) == pytest.approx([0, 0.5, 2.5, 4.5])
    assert beyond.sum(1) == pytest.approx(np.ones(4))
