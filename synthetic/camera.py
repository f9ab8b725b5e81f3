"""One image of one person: background, portrait, light, lens and sensor."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from facestream import UserError
from synthetic.geometry import CENTER_Y, Canvas
from synthetic.people import SHOT_STREAM, Identity, Shot, draw, identity_traits, word
from synthetic.portrait import paint

SUPERSAMPLE = 2  # drawn this much larger and averaged down: Pillow's polygons have hard edges
MIN_SIZE = 16

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def render(identity: int, image: int, *, seed: int = 0, size: int = 112) -> np.ndarray:
    """Image number ``image`` of person number ``identity``: (size, size, 3) uint8 RGB.

    A pure function of its arguments. The same image at another size shows the same scene.
    UserError unless the numbers are integers in [0, 2**32) and the size is at least 16.
    """
    size = word("size", size)
    if size < MIN_SIZE:
        raise UserError(f"size is {size}; faces are drawn at {MIN_SIZE} pixels a side or more")
    who = identity_traits(identity, seed=seed)
    rng = np.random.default_rng([SHOT_STREAM, seed, identity, word("image", image)])
    return photograph(who, draw(Shot, rng), rng=rng, size=size)


def photograph(who: Identity, shot: Shot, *, rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) uint8; the generator gives background, clothes, occluder and noise."""
    canvas = Canvas(_background(rng, side=SUPERSAMPLE * size), shot)
    paint(canvas, who, shot, rng=rng)
    picture = canvas.image.reduce(SUPERSAMPLE)
    if shot.blur > 0:
        picture = picture.filter(ImageFilter.GaussianBlur(shot.blur * size / 112))
    return _expose(picture, shot, rng=rng)


def _background(rng: np.random.Generator, *, side: int) -> Image.Image:
    """A smooth field of related colors, and a few see-through sheets standing about in it."""
    cells = int(rng.integers(2, 6))
    base = rng.integers(30, 226) + rng.integers(-60, 61, 3)
    colors = np.clip(base + rng.integers(-40, 41, (cells, cells, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(colors).resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image, "RGBA")
    for _ in range(int(rng.integers(0, 5))):
        corners = rng.uniform(-0.2, 1.2, (4, 2)) * side
        color = (*rng.integers(0, 256, 3).tolist(), int(rng.integers(40, 160)))
        pen.polygon(corners.ravel().tolist(), fill=color)
    return image


def _expose(picture: Image.Image, shot: Shot, *, rng: np.random.Generator) -> np.ndarray:
    size = picture.width
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x = ((axis - 0.5 - shot.shift_x) / shot.zoom)[None, :]
    y = ((axis - CENTER_Y - shot.shift_y) / shot.zoom)[:, None]
    squared = x * x + y * y  # (size, size)
    # Strongest on the rim of a rounded head, fading away in the background.
    from_side = (x * shot.light_x + y * shot.light_y) * (2.1 / (1 + squared * squared))
    light = shot.exposure * np.clip(1.02 + from_side - 0.06 * squared, 0.22, 1.6)

    pixels: np.ndarray = np.asarray(picture, dtype=np.float32)  # (size, size, 3)
    gray = (pixels @ _LUMA)[:, :, None]
    gains = np.array([1 + shot.warmth, 1 + shot.tint, 1 - shot.warmth], dtype=np.float32)
    pixels = gray + shot.saturation * (pixels - gray)
    pixels = np.minimum(pixels * (light[:, :, None] * gains), 400)
    # A film's shoulder: highlights bend towards white instead of burning out.
    pixels -= 0.002 * np.square(np.maximum(pixels - 150, 0))
    pixels += shot.noise * rng.standard_normal((size, size, 1), dtype=np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def encode_jpeg(image: np.ndarray, *, quality: int = 92) -> bytes:
    """A baseline JPEG of (H, W, 3) uint8 RGB.

    ValueError for another shape or dtype, or a quality outside 1 to 100.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image is {image.dtype} of shape {image.shape}; give uint8 RGB of shape (H, W, 3)"
        )
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; JPEG knows 1 to 100")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
