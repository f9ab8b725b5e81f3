from __future__ import annotations

import pytest
import torch

from models import normalize


def gray_levels() -> torch.Tensor:
    """All 256 gray levels as (2, 3, 8, 16) uint8 with channels_last strides."""
    levels = torch.arange(256, dtype=torch.uint8).view(2, 8, 16, 1).expand(2, 8, 16, 3)
    return levels.contiguous().permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_gray_level_is_the_nearest_value_of_the_dtype(dtype: torch.dtype) -> None:
    images = gray_levels()
    exact = images.double() / 127.5 - 1
    assert torch.equal(normalize(images, dtype), exact.to(dtype))


def test_bfloat16_keeps_all_256_gray_levels_apart() -> None:
    assert normalize(gray_levels(), torch.bfloat16).unique().numel() == 256


def test_channels_last_strides_are_kept_and_the_input_is_left_alone() -> None:
    images = gray_levels()
    before = images.clone()
    result = normalize(images, torch.float16)
    assert result.dtype == torch.float16
    assert result.stride() == images.stride()
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ],
    ids=["already floating", "HWC", "no batch axis"],
)
def test_other_than_uint8_bchw_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"found images of shape .*expected \(B, 3, H, W\)"):
        normalize(images, torch.float32)


def test_an_integer_compute_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="floating"):
        normalize(gray_levels(), torch.int8)
