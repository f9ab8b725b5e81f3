"""Verification finds every image that does not decode, and no other."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from pipeline.records.verify import Failure, decode_error, find_undecodable

LFW = Path(__file__).parents[4] / "shared/data/faces_lfw_dev"


def encode(mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    stored = io.BytesIO()
    Image.fromarray(noise, "RGBA").convert("RGB").convert(mode).save(
        stored, **{"format": "JPEG", **options}
    )
    return stored.getvalue()


@pytest.mark.parametrize(
    "image",
    [
        encode(),
        encode(progressive=True),
        encode("CMYK"),
        encode("L"),
        encode(format="PNG"),
        encode(format="WEBP"),
    ],
    ids=["baseline", "progressive", "cmyk", "gray", "png", "webp"],
)
def test_what_decodes_is_not_complained_about(image):
    assert decode_error(image) is None
    assert decode_error(memoryview(image)) is None


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (encode()[:-200], "Premature end of JPEG"),
        (encode("CMYK")[:-200], "truncated"),
        (encode()[:3], "JPEG"),
        (encode(format="PNG")[:-200], "truncated"),
        (b"no image at all", "no image: it starts with 6e6f2069"),
    ],
)
def test_what_does_not_decode_is_named_with_the_reason(image, why):
    assert why in decode_error(image)


@pytest.mark.parametrize("options", [{}, {"mode": "CMYK"}, {"format": "PNG"}])
def test_another_size_than_is_wanted_is_reported(options):
    assert decode_error(encode(**options), size=32) == "32 x 24 pixels, not 32 x 32"


def test_failures_come_in_file_order_with_offset_and_label(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.records.verify._RUN", 3)
    good, steps = encode(), []
    with RecordWriter(tmp_path / "train.rec") as writer:
        offsets = [
            writer.write(pack_image(b"bad" if k in (2, 7) else good, float(k), k))
            for k in range(10)
        ]
    index = open_index(tmp_path)
    failures = list(find_undecodable(index, lambda *progress: steps.append(progress)))
    why = "no image: it starts with 626164"
    assert failures == [Failure(offsets[2], 2, why), Failure(offsets[7], 7, why)]
    assert steps == [(3, 10), (6, 10), (9, 10), (10, 10)]


@pytest.mark.skipif(not LFW.exists(), reason="faces_lfw_dev is not on this machine")
def test_real_faces_all_decode(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert list(find_undecodable(open_index(LFW))) == []
