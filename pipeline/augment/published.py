"""Recipes that published face recognition trained with: arcface, adaface."""

from __future__ import annotations

import numpy as np

from pipeline import dali
from pipeline.augment.color import draw_jitter, jitter, without_color
from pipeline.augment.erase import crop, draw_crop
from pipeline.augment.geometry import (
    draw_resampling,
    draw_side,
    lower_resolution,
    resample,
    square,
)
from pipeline.augment.quality import blur, gaussian_kernels
from pipeline.augment.recipe import Argument, Draw, Node, Recipe

_WINDOW = 5  # pixels: the wider of the two blurs of arcface


def _draw_arcface(draw: Draw) -> dict[str, Argument]:
    """What InsightFace's arcface_torch draws with `dali_aug`: 10 % are brought down to a side of
    0.5–0.8 and back, 20 % blurred over 3 or 5 pixels, 20 % turned in hue by up to 20° and raised in
    saturation by up to 1.2, 10 % lose their color. Each on its own.
    """
    wide = draw.chance("arcface.blur_wide", 0.5)
    narrow = np.zeros((1, _WINDOW, _WINDOW), np.float32)
    narrow[:, 1:-1, 1:-1] = gaussian_kernels(np.array([0.8]), 3)
    kernel = np.where(wide[:, None, None], gaussian_kernels(np.array([1.1]), _WINDOW), narrow)
    side = draw_side(draw, "arcface", low=0.5, high=0.8)
    return {
        "resized": draw.chance("arcface.resize", 0.1),
        "small": square(side),
        "whole": square(np.full_like(side, draw.size)),
        "blurred": draw.chance("arcface.blur", 0.2),
        "kernel": kernel,
        "colored": draw.chance("arcface.color", 0.2),
        "hue": draw("arcface.hue", 0, 20).astype(np.float32),
        "saturation": draw("arcface.saturation", 1, 1.2).astype(np.float32),
        "grey": draw.chance("arcface.grey", 0.1),
    }


def _arcface(
    images: Node,
    resized: Node,
    small: Node,
    whole: Node,
    blurred: Node,
    kernel: Node,
    colored: Node,
    hue: Node,
    saturation: Node,
    grey: Node,
) -> Node:
    if resized:
        images = lower_resolution(images, small, whole)
    if blurred:
        images = blur(images, kernel)
    if colored:
        images = dali.fn.hsv(images, hue=hue, saturation=saturation)
    if grey:
        images = without_color(images)
    return images


def _draw_adaface(draw: Draw) -> dict[str, Argument]:
    """What AdaFace (Kim, Jain and Liu, CVPR 2022) draws, each in 20 % of the images, on its own:
    all but a window of 0.2–1 of the area is black; the resolution falls to 0.2–1 of the side, by
    any of OpenCV's interpolations there and back; brightness, contrast and saturation of 0.5–1.5,
    in any order.

    OpenCV's cubic is sharper than DALI's (a = −0.75 against −0.5), its Lanczos takes 8 pixels where
    DALI's takes 6.
    """
    side = draw_side(draw, "adaface", low=0.2, high=1.0)
    whole = np.full_like(side, draw.size)
    down = draw_resampling(draw, "adaface.down", before=whole, after=side)
    up = draw_resampling(draw, "adaface.up", before=side, after=whole)
    return {
        "cropped": draw.chance("adaface.crop", 0.2),
        **draw_crop(draw, "adaface", area=(0.2, 1.0)),
        "resized": draw.chance("adaface.resize", 0.2),
        **{f"down_{name}": values for name, values in down.items()},
        **{f"up_{name}": values for name, values in up.items()},
        "relit": draw.chance("adaface.photometric", 0.2),
        **draw_jitter(draw, "adaface", reach=0.5),
    }


def _adaface(
    images: Node,
    cropped: Node,
    anchor: Node,
    shape: Node,
    resized: Node,
    relit: Node,
    **drawn: Node,
) -> Node:
    down, up = (
        {name.removeprefix(way): drawn.pop(name) for name in list(drawn) if name.startswith(way)}
        for way in ("down_", "up_")
    )
    if cropped:
        images = crop(images, anchor, shape)
    if resized:
        images = resample(resample(images, **down), **up)
    if relit:
        images = jitter(images, **drawn)
    return images


ARCFACE = Recipe(_draw_arcface, _arcface)
ADAFACE = Recipe(_draw_adaface, _adaface)
