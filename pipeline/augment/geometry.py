"""Recipes that move pixels: flip, geometry; and the resizing that others make use of."""

from __future__ import annotations

import numpy as np

from pipeline import dali
from pipeline.augment.recipe import Argument, Draw, Node, Recipe

# By DALI's numbers of them, because draws must not need DALI itself.
NN, LINEAR, CUBIC, LANCZOS3 = range(4)
TRIANGULAR = 4  # averages over what a pixel covers when sizes shrink
INTERPOLATIONS = (NN, LINEAR, CUBIC, LANCZOS3, TRIANGULAR)


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
        matrix, dali.types.Constant(np.float32([[0, 0, 1]]), device="cpu"), axis=0
    )
    return dali.fn.experimental.warp_perspective(
        images, matrix=perspective, fill_value=[0.0, 0.0, 0.0]
    )


def draw_resolution(
    draw: Draw, name: str, *, low: float, high: float, choice: tuple[int, ...] = INTERPOLATIONS
) -> dict[str, Argument]:
    """Arguments of `lower_resolution`: a side of `low` to `high` of the whole, and how to get there
    and back: each way of its own, any of `choice`.
    """
    side = np.maximum(1, np.floor(draw(f"{name}.side", low, high) * draw.size))
    whole = np.full_like(side, draw.size)
    kinds = np.array(choice, np.int32)
    return {
        "small": np.stack([side, side], axis=-1).astype(np.float32),  # (B, 2)
        "whole": np.stack([whole, whole], axis=-1).astype(np.float32),
        "down": kinds[draw.integers(f"{name}.down", 0, len(choice) - 1)],
        "up": kinds[draw.integers(f"{name}.up", 0, len(choice) - 1)],
    }


def lower_resolution(images: Node, small: Node, whole: Node, down: Node, up: Node) -> Node:
    """Shrink the images and enlarge them again; aliasing and all, as cheap software does it."""
    for size, kind in ((small, down), (whole, up)):
        interpolation = dali.fn.reinterpret(kind, dtype=dali.types.INTERP_TYPE)
        images = dali.fn.resize(images, size=size, interp_type=interpolation, antialias=False)
    return images


FLIP = Recipe(_draw_flip, _flip)
GEOMETRY = Recipe(_draw_geometry, _geometry)
