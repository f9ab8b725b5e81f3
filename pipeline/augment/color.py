"""Recipes that change light and color: light, jitter; and what others make use of."""

from __future__ import annotations

import numpy as np

from pipeline import dali
from pipeline.augment.recipe import Argument, Draw, Node, Recipe


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
    # Saturation s is s · color + (1 − s) · luma. 16 bits hold it unclipped, and of the operators
    # that scale only this one is vectorized.
    color = dali.fn.brightness_contrast(images, brightness=saturation, dtype=dali.types.INT16)
    luma = dali.fn.brightness_contrast(
        without_color(images), brightness=1.0 - saturation, dtype=dali.types.INT16
    )
    return dali.fn.cast(color + luma, dtype=dali.types.UINT8)


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
    factors = {name: draw.factors(f"jitter.{name}", 0.4) for name in names}
    return factors | {"hue": draw("jitter.hue", -18, 18).astype(np.float32)}


def _jitter(images: Node, brightness: Node, contrast: Node, saturation: Node, hue: Node) -> Node:
    return dali.fn.color_twist(
        images, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
    )


LIGHT = Recipe(_draw_light, photometric)
JITTER = Recipe(_draw_jitter, _jitter)
