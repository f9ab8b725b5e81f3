"""The recipe of bad cameras: blur, noise and compression; and the blur that others make use of."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pipeline import counter, dali
from pipeline.augment.recipe import Argument, Draw, Node, Recipe, beside

_KERNEL = 7  # pixels: side of the blur's kernel
_STEPS = 33  # points on the path of a motion
_OFFSETS = 1 << 20  # windows of the noise: shifted by a sample each
_LEVELS = 31  # steps of int8 to one standard deviation, so that 4 of them fit


def gaussian_kernels(sigma: np.ndarray, side: int) -> np.ndarray:
    """(B,) standard deviations in pixels → (B, side, side) float32 kernels of sum 1."""
    away = np.arange(side) - side // 2
    line = np.exp(-0.5 * (away / sigma[:, None]) ** 2)
    kernels = line[:, :, None] * line[:, None, :]
    return (kernels / kernels.sum((1, 2), keepdims=True)).astype(np.float32)


def motion_kernels(length: np.ndarray, angle: np.ndarray, side: int) -> np.ndarray:
    """(B,) paths of `length` pixels at `angle` radians → (B, side, side) float32 of sum 1."""
    path = np.linspace(-0.5, 0.5, _STEPS) * length[:, None]  # (B, steps)
    pixels = np.arange(side) - side // 2

    def shares(along: np.ndarray) -> np.ndarray:
        """(B, side, steps): how much of each point falls to each row or column."""
        return np.maximum(0, 1 - np.abs(pixels[:, None] - along[:, None, :]))

    down, right = (path * np.sin(angle)[:, None], path * np.cos(angle)[:, None])
    kernels = shares(down) @ shares(right).transpose(0, 2, 1)
    return (kernels / kernels.sum((1, 2), keepdims=True)).astype(np.float32)


def blur(images: Node, kernel: Node) -> Node:
    """Convolve with a drawn kernel: on CPUs several times as fast as DALI's gaussian_blur."""
    return dali.fn.filter(images, beside(kernel, images))


@lru_cache(maxsize=1)
def _noise(length: int) -> np.ndarray:
    """Standard normal numbers in int8, a function of nothing but how many are wanted."""
    at = np.arange((length + 1) // 2)
    radius = np.sqrt(-2 * np.log(1 - counter.uniform(counter.key("noise.radius"), at)))
    angle = 2 * np.pi * counter.uniform(counter.key("noise.angle"), at)
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:length]
    return np.clip(np.rint(normal * _LEVELS), -127, 127).astype(np.int8)


def _draw_noise(draw: Draw, taken: np.ndarray) -> list[np.ndarray]:
    """(H, W, 3) int8 of noise an image, nothing for those that take none.

    DALI's noise comes from a generator with a state, which a resumed run would not have. Drawing
    38,000 numbers an image in Python would cost as much as decoding it. So each image sees one of a
    million windows of a fixed stretch of noise, without a copy here, and the same on every device.
    """
    shape = (draw.size, draw.size, 3)
    length = draw.size * draw.size * 3
    stretch = _noise(_OFFSETS + length)
    nothing = np.zeros((0, 0, 3), np.int8)
    starts = draw.integers("quality.noise_window", 0, _OFFSETS - 1)
    return [
        stretch[at : at + length].reshape(shape) if takes else nothing
        for at, takes in zip(starts, taken)
    ]


def _draw_quality(draw: Draw) -> dict[str, Argument]:
    """Each of three in 30 % of the images, on their own: blur, half of it a motion over 2 to 6
    pixels, half Gaussian with σ of 0.5–1.5 pixels; Gaussian noise with σ of 2–12 grey levels;
    JPEG with quality 30–100.
    """
    moves = draw.chance("quality.blur_moves", 0.5)
    kernel = np.where(
        moves[:, None, None],
        motion_kernels(
            draw("quality.blur_length", 2, 6), draw("quality.blur_angle", 0, np.pi), _KERNEL
        ),
        gaussian_kernels(draw("quality.blur_sigma", 0.5, 1.5), _KERNEL),
    )
    noisy = draw.chance("quality.noise", 0.3)
    return {
        "blurred": draw.chance("quality.blur", 0.3),
        "kernel": kernel,
        "noisy": noisy,
        "noise": _draw_noise(draw, noisy),
        "sigma": (draw("quality.noise_sigma", 2, 12) / _LEVELS).astype(np.float32),
        "compressed": draw.chance("quality.jpeg", 0.3),
        "jpeg": draw.integers("quality.jpeg_quality", 30, 100),
    }


def _quality(
    images: Node,
    blurred: Node,
    kernel: Node,
    noisy: Node,
    noise: Node,
    sigma: Node,
    compressed: Node,
    jpeg: Node,
) -> Node:
    """In the order in which a camera does it."""
    if blurred:
        images = blur(images, kernel)
    if noisy:
        noised = images + sigma * beside(noise, images)
        # It rounds and clips as a cast does, and faster.
        images = dali.fn.brightness_contrast(noised, dtype=dali.types.UINT8)
    if compressed:
        images = dali.fn.jpeg_compression_distortion(images, quality=jpeg)
    return images


QUALITY = Recipe(_draw_quality, _quality)
