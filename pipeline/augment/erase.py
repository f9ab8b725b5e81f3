"""Recipes that hide parts of the face: erase; and the cropping that others make use of."""

from __future__ import annotations

import numpy as np

from pipeline import dali
from pipeline.augment.recipe import Argument, Draw, Node, Recipe

_ATTEMPTS = 10


def _draw_erase(draw: Draw) -> dict[str, Argument]:
    """A mask over the lower face in 10 % of the images, a rectangle anywhere in another 20 %.

    On InsightFace's template the eyes are at 0.46 of the height, the nose at 0.64, the mouth at
    0.82: a mask begins at 0.55–0.7 and leaves 8–20 % of the width free on either side. A rectangle
    takes 2–20 % of the area, its sides at most 3 to 1. Each is filled with a drawn color.
    """
    which = draw("erase.which")
    top = draw("erase.mask_top", 0.55, 0.7)
    left, right = (draw(f"erase.mask_{side}", 0.08, 0.2) for side in ("left", "right"))
    area = draw("erase.area", 0.02, 0.2)
    ratio = np.exp(draw("erase.ratio", -np.log(3), np.log(3)))
    height, width = np.sqrt(area * ratio), np.sqrt(area / ratio)
    above = draw("erase.above") * (1 - height)
    before = draw("erase.before") * (1 - width)
    masked = (which < 0.1)[:, None]
    # (B, 2): rows, columns; shares of the side
    anchor = np.where(masked, np.stack([top, left], -1), np.stack([above, before], -1))
    shape = np.where(
        masked, np.stack([1 - top, 1 - left - right], -1), np.stack([height, width], -1)
    )
    color = np.stack([draw(f"erase.{channel}", 0, 255) for channel in "rgb"], axis=-1)
    return {
        "erased": which < 0.3,
        "anchor": np.rint(anchor * draw.size).astype(np.float32),
        "shape": np.rint(shape * draw.size).astype(np.float32),
        "color": np.rint(color).astype(np.float32),
    }


def erase(images: Node, erased: Node, anchor: Node, shape: Node, color: Node) -> Node:
    """Fill a rectangle of the images of which `erased` is true."""
    if erased:
        images = dali.fn.erase(images, anchor=anchor, shape=shape, fill_value=color)
    return images


def draw_crop(draw: Draw, name: str, *, area: tuple[float, float]) -> dict[str, Argument]:
    """Arguments of `crop`: a window of `area` of the image, sides 3:4 to 4:3, anywhere in it.

    A window that does not fit is drawn again, as torchvision's RandomResizedCrop does it, up to ten
    times; then the whole image is taken.
    """
    height = width = np.full(len(draw), float(draw.size))
    fits = np.zeros(len(draw), bool)
    for attempt in range(_ATTEMPTS):
        share = draw(f"{name}.area.{attempt}", *area)
        ratio = np.exp(draw(f"{name}.ratio.{attempt}", np.log(3 / 4), np.log(4 / 3)))
        tall, wide = (np.rint(np.sqrt(share * r) * draw.size) for r in (1 / ratio, ratio))
        taken = ~fits & (tall <= draw.size) & (wide <= draw.size)
        height, width = np.where(taken, tall, height), np.where(taken, wide, width)
        fits |= taken
        if fits.all():
            break
    height, width = np.maximum(height, 1), np.maximum(width, 1)
    top = np.floor(draw(f"{name}.top") * (draw.size - height + 1))
    left = np.floor(draw(f"{name}.left") * (draw.size - width + 1))
    zero, whole = np.zeros_like(top), np.full_like(top, draw.size)
    bottom, right = top + height, left + width
    # Above, below, left and right of the window: (row, column) of each, then their extents.
    anchor = [zero, zero, bottom, zero, zero, zero, zero, right]
    shape = [top, whole, whole - bottom, whole, whole, left, whole, whole - right]
    return {
        "anchor": np.stack(anchor, axis=-1).astype(np.float32),  # (B, 8)
        "shape": np.stack(shape, axis=-1).astype(np.float32),
    }


def crop(images: Node, anchor: Node, shape: Node) -> Node:
    """Keep a window where it is; around it is black."""
    return dali.fn.erase(images, anchor=anchor, shape=shape, fill_value=0)


ERASE = Recipe(_draw_erase, erase)
