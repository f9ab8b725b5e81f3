"""What every network here expects of its input: pixels in [-1, 1], in the compute dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def normalize(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Map pixels 0..255 to x / 127.5 - 1 in [-1, 1]; the strides stay as they are.

    Args:
        images: (B, 3, H, W) uint8 RGB, usually with channels_last strides. Left unchanged.
        dtype: the compute dtype: float32, bfloat16 or float16.

    Returns:
        (B, 3, H, W) of `dtype`, channels_last if `images` was: no copy for the layout's sake.

    Raises:
        ValueError: `images` is not (B, 3, H, W) uint8, or `dtype` is not a floating type.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"normalize: found images of shape {tuple(images.shape)} and {images.dtype}, "
            "expected (B, 3, H, W) torch.uint8, as the loader yields them"
        )
    if not dtype.is_floating_point:
        raise ValueError(f"normalize: {dtype} cannot hold [-1, 1]; pass a floating dtype")
    # 0..255 and then x - 127.5 are exact even in bfloat16's 8 bits, so only the division rounds.
    # x / 127.5 - 1 would round twice, and in bfloat16 merge neighboring gray levels around 0.
    return images.to(dtype).sub_(127.5).div_(127.5)
