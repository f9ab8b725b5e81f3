"""Recipes that move pixels: flip, geometry; and the resizing that others make use of."""

from __future__ import annotations

import numpy as np

from pipeline import dali
from pipeline.augment.recipe import Argument, Draw, Node, Recipe

# By DALI's numbers of them, because draws must not need DALI itself.
NN, LINEAR, CUBIC, LANCZOS3 = range(4)
# The average over what a pixel covers, which DALI has under no name: see `resample`.
AREA = 4


def _draw_flip(draw: Draw) -> dict[str, Argument]:
    """One image in two is mirrored."""
    return {"mirror": draw.chance("flip", 0.5).astype(np.int32)}


def _flip(images: Node, mirror: Node) -> Node:
    return dali.fn.flip(images, horizontal=mirror)


def _draw_geometry(draw: Draw) -> dict[str, Argument]:
    """Rotation by ±8°, scale 0.92–1.08, shift by ±4 % of the side, all about the center."""
    angle = np.deg2rad(draw("geometry.angle", -8, 8))
    scale = draw("geometry.scale", 0.92, 1.08)
    shift = [draw(f"geometry.shift_{axis}", -0.04, 0.04) * draw.size for axis in "xy"]
    center = draw.size / 2  # DALI counts from the pixels' corners
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.stack(
        [
            np.stack([cos, -sin, center - cos * center + sin * center + shift[0]], axis=-1),
            np.stack([sin, cos, center - sin * center - cos * center + shift[1]], axis=-1),
        ],
        axis=1,
    )  # (B, 2, 3)
    return {"matrix": matrix.astype(np.float32)}


def _geometry(images: Node, matrix: Node) -> Node:
    # On CPUs warp_perspective takes a sixth of the time of warp_affine.
    perspective = dali.fn.cat(
        matrix, dali.types.Constant(np.array([[0, 0, 1]], np.float32), device="cpu"), axis=0
    )
    return dali.fn.experimental.warp_perspective(
        images, matrix=perspective, fill_value=[0.0, 0.0, 0.0]
    )


def draw_side(draw: Draw, name: str, *, low: float, high: float) -> np.ndarray:
    """(B,) whole sides in pixels, `low` to `high` of the images'."""
    return np.maximum(1, np.floor(draw(f"{name}.side", low, high) * draw.size))


def square(side: np.ndarray) -> np.ndarray:
    """(B,) sides → (B, 2) float32 sizes, as DALI takes them."""
    return np.stack([side, side], axis=-1).astype(np.float32)


def lower_resolution(images: Node, small: Node, whole: Node) -> Node:
    """Shrink the images and enlarge them again, linearly; aliasing and all."""
    for size in (small, whole):
        images = dali.fn.resize(
            images, size=size, interp_type=dali.types.INTERP_LINEAR, antialias=False
        )
    return images


def draw_resampling(
    draw: Draw, name: str, *, before: np.ndarray, after: np.ndarray
) -> dict[str, np.ndarray]:
    """Arguments of `resample`, from (B,) sides to others: any of five interpolations alike."""
    which = draw.integers(name, NN, AREA)
    area = which == AREA
    shrinks = after < before
    between = np.where(shrinks, 2 * after, before * np.rint(after / before))
    # OpenCV's nearest pixel is the one that a pixel's corner falls on, DALI's that of its center.
    corner = np.where(which == NN, -0.499 * before / after, 0)
    return {
        # The average: linear, after a step that leaves it no other pixels to mix.
        "kind": np.where(area, LINEAR, which).astype(np.int32),
        "area": area,
        "shrinks": shrinks,
        "between": square(between),
        "start": square(corner),
        "end": square(np.where(area, between, before) + corner),
        "size": square(after),
    }


def resample(
    images: Node,
    kind: Node,
    area: Node,
    shrinks: Node,
    between: Node,
    start: Node,
    end: Node,
    size: Node,
) -> Node:
    """Resize as OpenCV does it: only the average over what a pixel covers looks at all pixels.

    That average comes out within half a grey level in the mean: to shrink, of two triangles side by
    side; to enlarge, of whole copies of each pixel, of which those at a border are mixed.
    """
    if area:
        if shrinks:
            images = dali.fn.resize(
                images, size=between, interp_type=dali.types.INTERP_TRIANGULAR, antialias=True
            )
        else:
            images = dali.fn.resize(images, size=between, interp_type=dali.types.INTERP_NN)
    interpolation = dali.fn.reinterpret(kind, dtype=dali.types.INTERP_TYPE)
    return dali.fn.resize(
        images,
        size=size,
        interp_type=interpolation,
        antialias=False,
        roi_start=start,
        roi_end=end,
    )


FLIP = Recipe(_draw_flip, _flip)
GEOMETRY = Recipe(_draw_geometry, _geometry, moves=True)
