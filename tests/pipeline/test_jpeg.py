"""Decoding batches: DALI's pixels, mirrored where asked, and every fault named."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import dali
from pipeline.dali_decode import decoded, pipeline_settings
from pipeline.jpeg import decode_batch

SIZE = 24


def encode(seed: int, kind: str = "JPEG", size: int = SIZE, mode: str = "RGB", **options) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size))
    file = io.BytesIO()
    small.convert(mode).save(file, kind, **options)
    return file.getvalue()


def decode(files: list[bytes], mirrored=None) -> tuple[np.ndarray, dict[int, str]]:
    return decode_batch([partial(bytes, file) for file in files], size=SIZE, mirrored=mirrored)


def decode_with_dali(files: list[bytes]) -> np.ndarray:
    """(B, SIZE, SIZE, 3) uint8, as the stream decodes them where DALI does."""
    pipeline = dali.Pipeline(**pipeline_settings(len(files), 1, torch.device("cpu"), prefetch=1))
    with pipeline:
        encoded = dali.fn.external_source(
            source=lambda: [np.frombuffer(file, np.uint8) for file in files], batch=True
        )
        pipeline.set_outputs(decoded(encoded, "cpu"))
    pipeline.build()
    return np.array(pipeline.run()[0].as_array())


FILES = [
    *(encode(k, quality=60 + k) for k in range(20)),
    encode(20, progressive=True),
    encode(21, mode="L"),
    encode(22, "PNG"),
    encode(23, subsampling=0),
]


@pytest.mark.dali
def test_pixels_are_those_of_dali():
    pixels, faults = decode(FILES)
    assert not faults
    assert np.array_equal(pixels, decode_with_dali(FILES))


def test_mirrored_images_are_the_others_reversed_to_the_pixel():
    plain, _ = decode(FILES)
    mirrored = np.arange(len(FILES)) % 3 != 0
    pixels, faults = decode(FILES, mirrored)
    assert not faults
    assert np.array_equal(pixels[~mirrored], plain[~mirrored])
    assert np.array_equal(pixels[mirrored], plain[mirrored][:, :, ::-1])


@pytest.mark.parametrize("size", [9, 10, 12, 24])
def test_rows_of_any_width_are_mirrored(size):
    """They are reversed in words of one, two, four or eight bytes, whatever divides a row."""
    file = encode(0, "PNG", size=size)
    read = [partial(bytes, file)] * 2
    (plain, mirrored), faults = decode_batch(read, size=size, mirrored=np.array([False, True]))
    assert not faults
    assert np.array_equal(mirrored, plain[:, ::-1])


def test_faults_are_named_and_the_others_decoded():
    good = encode(0)
    files = [good, good[: len(good) // 2], b"not an image", encode(1, size=30), encode(2, size=9)]
    files += [encode(3, "PNG", size=30), b"", good]
    for mirrored in (None, np.ones(len(files), bool)):
        pixels, faults = decode(files, mirrored)
        assert sorted(faults) == [1, 2, 3, 4, 5, 6]
        assert faults[1].startswith("cannot be decoded (it starts with ff d8")
        assert faults[2] == "cannot be decoded (it starts with 6e 6f 74 20)"
        assert faults[3] == "is 30×30, not 24×24 pixels"
        assert faults[4] == "is 9×9, not 24×24 pixels"
        assert faults[5] == "is 30×30, not 24×24 pixels"
        assert np.array_equal(pixels[0], pixels[7])
        assert not pixels[1:7].any()


def header_of(kind: str, width: int, height: int) -> bytes:
    """A file whose header claims a size that its content does not have."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    data = bytearray(file.getvalue())
    if kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("side", [13_000, 20_000, 65_500])
def test_a_header_that_claims_billions_of_pixels_costs_one_image_and_no_memory(kind, side):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, faults = decode([header_of(kind, side, side), encode(0)])
    assert list(faults) == [0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_what_training_does_not_take_is_refused_and_16_bits_become_8():
    gif = encode(0, "GIF")
    deep = io.BytesIO()
    values = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    Image.fromarray(values).save(deep, "PNG")
    pixels, faults = decode([gif, deep.getvalue()])
    assert list(faults) == [0]
    assert np.array_equal(pixels[1, :, :, 0], values >> 8)


@pytest.mark.dali
def test_exif_does_not_turn_images_here_nor_in_dali():
    turned = Image.Exif()
    turned[0x0112] = 6
    file = encode(5, exif=turned)
    plain, _ = decode([encode(5)])
    pixels, _ = decode([file])
    assert np.array_equal(pixels, plain)
    assert np.array_equal(decode_with_dali([file]), plain)
