"""Decoding on threads: DALI's pixels, and every fault named while the others are decoded."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.dali_loader import decode_images
from pipeline.jpeg import Decoder

SIZE = 24


def encode(seed: int, kind: str = "JPEG", size: int = SIZE, mode: str = "RGB", **options) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size))
    file = io.BytesIO()
    small.convert(mode).save(file, kind, **options)
    return file.getvalue()


def arrays(files: list[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(file, np.uint8) for file in files]


@pytest.mark.parametrize("threads", [1, 3, 40])
def test_pixels_are_those_of_dali(threads):
    files = [
        *(encode(k, quality=60 + k) for k in range(20)),
        encode(20, progressive=True),
        encode(21, mode="L"),
        encode(22, "PNG"),
        encode(23, subsampling=0),
    ]
    pixels, faults = Decoder(SIZE, threads=threads)(arrays(files))
    assert not faults
    (expected,) = decode_images(
        files, batch_size=len(files), device=torch.device("cpu"), image_size=SIZE
    )
    assert np.array_equal(pixels, expected.permute(0, 2, 3, 1).numpy())


def test_faults_are_named_and_the_others_decoded():
    good = encode(0)
    files = [good, good[: len(good) // 2], b"not an image", encode(1, size=30), encode(2, size=9)]
    files += [encode(3, "PNG", size=30), b"", good]
    pixels, faults = Decoder(SIZE, threads=2)(arrays(files))
    assert sorted(faults) == [1, 2, 3, 4, 5, 6]
    assert faults[1].startswith("cannot be decoded (it starts with ff d8")
    assert faults[2] == "cannot be decoded (it starts with 6e 6f 74 20)"
    assert faults[3] == "is 30×30, not 24×24 pixels"
    assert faults[4] == "is 9×9, not 24×24 pixels"
    assert faults[5] == "is 30×30, not 24×24 pixels"
    assert np.array_equal(pixels[0], pixels[7])
    assert not pixels[1:7].any()
    assert np.array_equal(pixels[0], Decoder(SIZE, threads=1)(arrays([good]))[0][0])
