"""Test sets as worse cameras would have taken them: blurred, of low resolution, noisy, masked …

A degradation changes the decoded pixels in memory, before the network sees them. What is random is
drawn from (seed, place), so an image is degraded alike in any batch, on any rank, at any time.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from evaluation.images import Images, ImagesError

Degrade = Callable[[Image.Image, float, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Degradation:
    """One kind of damage.

    Attributes:
        strength: where none is given.
        lowest, highest: what may be given.
        unit: what it is measured in, for settings and errors.
        apply: image, strength and random numbers to the degraded image.
    """

    strength: float
    lowest: float
    highest: float
    unit: str
    apply: Degrade


def _blur(image: Image.Image, sigma: float, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(sigma))


def _low_resolution(image: Image.Image, side: float, _: np.random.Generator) -> Image.Image:
    small = image.resize((round(side), round(side)), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format="jpeg", quality=round(quality))
    return Image.open(file).convert("RGB")


def _noise(image: Image.Image, sigma: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    noisy = pixels + sigma * random.standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _mask(image: Image.Image, top: float, random: np.random.Generator) -> Image.Image:
    """A surgical mask from the nose downwards, in one of the usual colors."""
    side = image.width
    color = _MASK_COLORS[int(random.integers(len(_MASK_COLORS)))]
    corners = [(0.14, top + 0.07), (0.5, top), (0.86, top + 0.07), (0.8, 0.9), (0.5, 1), (0.2, 0.9)]
    masked = image.copy()
    draw = ImageDraw.Draw(masked)
    draw.polygon([(x * side, y * side) for x, y in corners], fill=color)
    return masked


_MASK_COLORS = ((120, 170, 205), (235, 235, 235), (35, 35, 40))

DEGRADATIONS: Mapping[str, Degradation] = {
    "blur": Degradation(2, 0.1, 30, "pixels, the deviation of a Gaussian", _blur),
    "lowres": Degradation(16, 2, 1000, "pixels a side that it is reduced to", _low_resolution),
    "jpeg": Degradation(10, 1, 95, "JPEG quality", _jpeg),
    "noise": Degradation(25, 0.1, 255, "levels of 255, the deviation of Gaussian noise", _noise),
    "mask": Degradation(0.55, 0.3, 0.9, "of the height, where the mask begins", _mask),
}


def degraded(images: Images, kind: str, strength: float | None = None, *, seed: int = 0) -> Images:
    """The same images, each degraded when it is loaded.

    Args:
        kind: one of DEGRADATIONS.
        strength: in its unit; None for the usual one.
        seed: of what is random.

    Raises:
        ImagesError: an unknown kind, or a strength outside its range.
    """
    if kind not in DEGRADATIONS:
        raise ImagesError(f"+{kind} is no degradation: expected one of {', '.join(DEGRADATIONS)}")
    degradation = DEGRADATIONS[kind]
    strength = degradation.strength if strength is None else strength
    if not degradation.lowest <= strength <= degradation.highest:
        raise ImagesError(
            f"found +{kind}={strength:g}, expected {degradation.lowest:g} to "
            f"{degradation.highest:g} ({degradation.unit})"
        )

    def load(places: range) -> tuple[np.ndarray, dict[int, str]]:
        pixels, faults = images.load(places)
        for row, place in enumerate(places):
            random = np.random.default_rng((seed, place))
            image = degradation.apply(Image.fromarray(pixels[row]), strength, random)
            pixels[row] = np.asarray(image)
        return pixels, faults

    known_by = f"{images.fingerprint} {kind} {strength!r} {seed} 1"
    return replace(images, load=load, fingerprint=hashlib.sha256(known_by.encode()).hexdigest())


def description(kind: str, strength: float | None = None) -> str:
    """In words, for the settings of a result."""
    chosen = DEGRADATIONS[kind]
    return f"{kind} {chosen.strength if strength is None else strength:g} ({chosen.unit})"
