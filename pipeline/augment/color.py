"""Recipes that change light and color: light, jitter; and what others make use of."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from pipeline import dali
from pipeline.augment.recipe import Argument, Draw, Node, Recipe

_JITTERED = ("brightness", "contrast", "saturation")
_CUT = -0.499  # grey levels: what is rounded after that was cut off, and whole numbers stay
_ORDERS = np.array(list(permutations(range(len(_JITTERED)))))


def without_color(images: Node) -> Node:
    """Three equal channels of luma (ITU-R BT.601)."""
    luma = dali.fn.color_space_conversion(
        images, image_type=dali.types.RGB, output_type=dali.types.GRAY
    )
    return dali.fn.color_space_conversion(
        luma, image_type=dali.types.GRAY, output_type=dali.types.RGB
    )


def photometric(images: Node, brightness: Node, contrast: Node, saturation: Node) -> Node:
    """Contrast about middle grey, then brightness, then saturation: factors, 1 changes nothing.

    Where nothing is clipped it is within two grey levels of DALI's color_twist, in a third of its
    time on CPUs, where that operator multiplies every pixel by a matrix.
    """
    images = dali.fn.brightness_contrast(
        images, brightness=brightness, contrast=contrast, contrast_center=128.0
    )
    return _saturate(images, saturation)


def _saturate(images: Node, factor: Node, shift: float = 0.0) -> Node:
    """factor · color + (1 − factor) · luma + shift, clipped."""
    # 16 bits hold it unclipped, and of the operators that scale only this one is vectorized.
    color = dali.fn.brightness_contrast(
        images, brightness=factor, brightness_shift=shift / 32767, dtype=dali.types.INT16
    )
    luma = dali.fn.brightness_contrast(
        without_color(images), brightness=1.0 - factor, dtype=dali.types.INT16
    )
    return dali.fn.cast(color + luma, dtype=dali.types.UINT8)


def draw_jitter(draw: Draw, name: str, *, reach: float) -> dict[str, Argument]:
    """Arguments of `jitter`: factors of 1 ± reach, in any order alike."""
    order = _ORDERS[draw.integers(f"{name}.order", 0, len(_ORDERS) - 1)]  # (B, 3)
    factors = np.stack([draw.factors(f"{name}.{kind}", reach) for kind in _JITTERED], axis=-1)
    factors = np.take_along_axis(factors, order, axis=1)
    rounds = range(len(_JITTERED))
    return {f"kind_{k}": order[:, k].astype(np.int32) for k in rounds} | {
        f"factor_{k}": factors[:, k].copy() for k in rounds
    }


def jitter(
    images: Node,
    kind_0: Node,
    kind_1: Node,
    kind_2: Node,
    factor_0: Node,
    factor_1: Node,
    factor_2: Node,
) -> Node:
    """Brightness, contrast and saturation in a drawn order, as torchvision's ColorJitter does it.

    Each mixes the image with another and clips: with black, with the mean of its own luma, with its
    luma. Orders differ in what they clip. Fractions are cut off, as Pillow does it: rounded, three
    in a row would be brighter by a level and a half.
    """
    for kind, factor in ((kind_0, factor_0), (kind_1, factor_1), (kind_2, factor_2)):
        if kind == 0:
            images = dali.fn.brightness_contrast(
                images, brightness=factor, brightness_shift=_CUT / 255
            )
        elif kind == 1:
            luma = dali.fn.color_space_conversion(
                images, image_type=dali.types.RGB, output_type=dali.types.GRAY
            )
            turned = dali.fn.brightness_contrast(images, brightness=factor, dtype=dali.types.INT16)
            mean = (1.0 - factor) * dali.fn.reductions.mean(luma)
            images = dali.fn.cast(turned + (mean + _CUT), dtype=dali.types.UINT8)
        else:
            images = _saturate(images, factor, shift=_CUT)
    return images


def _draw_light(draw: Draw) -> dict[str, Argument]:
    """Brightness and contrast 0.7–1.3, saturation 0.6–1.4, and one image in ten without color."""
    saturation = draw.factors("light.saturation", 0.4)
    saturation[draw.chance("light.grey", 0.1)] = 0.0
    return {
        "brightness": draw.factors("light.brightness", 0.3),
        "contrast": draw.factors("light.contrast", 0.3),
        "saturation": saturation,
    }


def _draw_jitter(draw: Draw) -> dict[str, Argument]:
    """Brightness, contrast and saturation 0.6–1.4, hue ±18°."""
    names = ("brightness", "contrast", "saturation")
    factors: dict[str, Argument] = {name: draw.factors(f"jitter.{name}", 0.4) for name in names}
    return factors | {"hue": draw("jitter.hue", -18, 18).astype(np.float32)}


def _jitter(images: Node, brightness: Node, contrast: Node, saturation: Node, hue: Node) -> Node:
    return dali.fn.color_twist(
        images, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
    )


LIGHT = Recipe(_draw_light, photometric)
JITTER = Recipe(_draw_jitter, _jitter)
