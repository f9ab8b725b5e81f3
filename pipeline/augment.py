"""Augmentation recipes: what is drawn for an image, and what DALI does with it.

Draws come from the counter-based generator at (seed, epoch, position) and enter the graph as
argument inputs, so a resumed or resharded run sees the very same pixels. A recipe is a pair of
functions with a name; recipes are composed in the order in which a configuration lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, types

from pipeline import counter

# DALI's nodes have no public type that annotations could name.
Node = Any


class Draw:
    """Uniform draws for the images of one batch, each named for what it decides."""

    def __init__(self, position: np.ndarray, *, seed: int, epoch: int, size: int) -> None:
        self.size = size  # pixels: images are (size, size, 3)
        self._position, self._seed, self._epoch = position, seed, epoch

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """(B,) float64 in [low, high)."""
        unit = counter.uniform(counter.key(self._seed, self._epoch, name), self._position)
        return low + (high - low) * unit


class Recipe(NamedTuple):
    """`draw` makes the argument arrays of a batch, `apply` uses them on (H, W, 3) uint8 images."""

    draw: Callable[[Draw], dict[str, np.ndarray]]
    apply: Callable[..., Node]


def _draw_flip(draw: Draw) -> dict[str, np.ndarray]:
    return {"mirror": (draw("flip") < 0.5).astype(np.int32)}


def _flip(images: Node, mirror: Node) -> Node:
    return fn.flip(images, horizontal=mirror)


def _draw_geometry(draw: Draw) -> dict[str, np.ndarray]:
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
    return fn.warp_affine(images, matrix=matrix, fill_value=0, interp_type=types.INTERP_LINEAR)


def _draw_light(draw: Draw) -> dict[str, np.ndarray]:
    """Brightness and contrast 0.7–1.3, saturation 0.6–1.4, and one image in ten without color."""
    saturation = draw("light.saturation", 0.6, 1.4)
    saturation[draw("light.grey") < 0.1] = 0.0
    return {
        "brightness": draw("light.brightness", 0.7, 1.3).astype(np.float32),
        "contrast": draw("light.contrast", 0.7, 1.3).astype(np.float32),
        "saturation": saturation.astype(np.float32),
    }


def _light(images: Node, brightness: Node, contrast: Node, saturation: Node) -> Node:
    return fn.color_twist(images, brightness=brightness, contrast=contrast, saturation=saturation)


RECIPES: dict[str, Recipe] = {
    "flip": Recipe(_draw_flip, _flip),
    "geometry": Recipe(_draw_geometry, _geometry),
    "light": Recipe(_draw_light, _light),
}


class Augmentation:
    """Recipes in order: the arrays they draw for a batch, and the graph they make of them."""

    def __init__(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in RECIPES]
        if unknown or len(set(names)) != len(names):
            raise ValueError(f"data.augment={list(names)}: each recipe once, of {sorted(RECIPES)}")
        self._recipes = [RECIPES[name] for name in names]
        probe = Draw(np.zeros(1, np.int64), seed=0, epoch=0, size=1)
        self._arguments = [recipe.draw(probe) for recipe in self._recipes]

    def arrays(self, draw: Draw) -> list[np.ndarray]:
        """The argument inputs of a batch, flat, each with the batch as its first dimension."""
        return [array for recipe in self._recipes for array in recipe.draw(draw).values()]

    @property
    def argument_types(self) -> list[tuple[Any, int]]:
        """(DALI type, dimensions of a sample) of each of `arrays`."""
        dali = {"int32": types.INT32, "float32": types.FLOAT}
        return [
            (dali[array.dtype.name], array.ndim - 1)
            for arguments in self._arguments
            for array in arguments.values()
        ]

    def __call__(self, images: Node, arguments: Sequence[Node]) -> Node:
        """Apply every recipe to the images, with the nodes that carry `arrays`."""
        rest = list(arguments)
        for recipe, names in zip(self._recipes, self._arguments):
            images = recipe.apply(images, **{name: rest.pop(0) for name in names})
        return images
