"""Copies of a photograph as training sets have them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

FACES = Path(__file__).parents[4] / "shared/data/faces_lfw_dev"


def decode(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def encode(pixels: np.ndarray, quality: int = 90) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def cropped(pixels: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    return pixels[top : height - bottom, left : width - right]


def scaled(pixels: np.ndarray, side: int = 112) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def brighter(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels * 0.7 + 40, 0, 255).astype(np.uint8)


COPIES: dict[str, Callable[[np.ndarray], bytes]] = {
    "quality 30": lambda pixels: encode(pixels, 30),
    "quality 75": lambda pixels: encode(pixels, 75),
    "cropped by 4 on each side": lambda pixels: encode(scaled(cropped(pixels, 4, 4, 4, 4))),
    "cropped by 4, not scaled": lambda pixels: encode(cropped(pixels, 4, 4, 0, 0)),
    "cropped by 4 at a corner": lambda pixels: encode(scaled(cropped(pixels, 0, 4, 4, 0))),
    "mirrored": lambda pixels: encode(pixels[:, ::-1]),
    "mirrored and cropped": lambda pixels: encode(scaled(cropped(pixels[:, ::-1], 4, 0, 0, 4)), 60),
    "brighter": lambda pixels: encode(brighter(pixels)),
}
