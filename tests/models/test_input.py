"""Inputs of networks from elsewhere: the very pixels of `normalize`, and those of others."""

import numpy as np
import pytest
import torch

from models import normalize
from models.input import Input, InputError

SIZE = 16


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_by_default_it_is_what_our_networks_take_to_the_bit(images, dtype):
    kept, channels_last = images.clone(), images.to(memory_format=torch.channels_last)
    assert torch.equal(Input(size=SIZE)(images, dtype), normalize(images, dtype))
    made = Input(size=SIZE)(channels_last, dtype)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, kept)


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"range": [0, 255]}, lambda x: x),
        ({"range": [0, 255], "mean": 127.5, "std": 128}, lambda x: (x - 127.5) / 128),
        ({"range": [0, 1], "color": "bgr"}, lambda x: x[:, ::-1] / 255),
        (
            {"range": [0, 1], "color": "bgr", "mean": [0.1, 0.2, 0.3], "std": [1, 2, 4]},
            lambda x: (
                (x[:, ::-1] / 255 - np.array([0.1, 0.2, 0.3])[:, None, None])
                / np.array([1, 2, 4])[:, None, None]
            ),
        ),
        ({"layout": "nhwc"}, lambda x: x.transpose(0, 2, 3, 1) / 127.5 - 1),
    ],
)
def test_other_conventions_are_those_of_a_formula(images, described, expected):
    wanted = Input.of(described, size=SIZE)
    made = wanted(images).numpy()
    assert made.shape == wanted.shape(2)
    np.testing.assert_allclose(made, expected(images.double().numpy()), rtol=1e-5, atol=1e-5)


def test_images_of_another_size_are_resized(images):
    """To a half, a pixel becomes an average of those around it; a flat image stays flat."""
    half = Input.of({"size": SIZE // 2, "range": [0, 255]}, size=SIZE)
    flat = torch.full_like(images, 100)
    torch.testing.assert_close(half(flat), torch.full(half.shape(2), 100.0))
    noise = half(images)
    assert noise.mean() == pytest.approx(images.float().mean().item(), rel=0.02)
    assert noise.std() < 0.7 * images.float().std(), "averaged over what a pixel covers"


@pytest.mark.parametrize(
    ("described", "text"),
    [
        ({}, "RGB in [-1, 1], 112 pixels, NCHW"),
        (
            {"color": "bgr", "range": [0, 1], "mean": [0.5, 0.5, 0.4], "layout": "nhwc"},
            "BGR in [0, 1], less [0.5, 0.5, 0.4] over 1, 112 pixels, NHWC",
        ),
    ],
)
def test_it_says_in_the_log_what_it_is(described, text):
    assert str(Input.of(described, size=112)) == text


@pytest.mark.parametrize(
    ("described", "complaint"),
    [
        ({"colour": "bgr"}, "colour: expected some of size, color, range"),
        ({"color": "grey"}, "color='grey': expected one of rgb, bgr"),
        ({"range": [1, 0]}, r"range=\(1, 0\): expected \[low, high\]"),
        ({"range": 255}, r"range=255: expected \[low, high\]"),
        ({"mean": [0.5, 0.5]}, r"mean=\(0.5, 0.5\): expected a number within .*, or three"),
        ({"mean": float("nan")}, "mean=nan: expected a number"),
        ({"mean": 10**400}, "mean=10+: expected a number within"),
        ({"range": [0, 1e-320]}, r"range=\(0, 1e-320\): expected \[low, high\]"),
        ({"std": 0}, "std=0: expected at least 1e-06"),
        ({"std": [1, 1, 1e-300]}, "std=.*: expected at least 1e-06"),
        ({1: 2, None: 3}, "1, None: expected some of size"),
        ({"size": "112"}, "size='112': expected 1 to 4096"),
        ({"layout": "hwc"}, "layout='hwc': expected one of nchw, nhwc"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(described, complaint):
    with pytest.raises(InputError, match=complaint):
        Input.of(described, size=112)
