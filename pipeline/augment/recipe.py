"""What a recipe is: draws for the images of a batch, and what DALI does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline import counter
from pipeline.side_columns import mirrored_landmarks

# DALI's nodes have no public type that annotations could name.
Node = Any
# An argument input: an array whose first dimension is the batch, or one array an image.
Argument = np.ndarray | list[np.ndarray]


class Draw:
    """Uniform draws for the images of one batch, each named for what it decides.

    Attributes:
        size: pixels: images are (size, size, 3).
        columns: (B, …) values of the batch's images by name, as pipeline/side_columns.py has them.
        mirrored: (B,) bool, which images are mirrored by now.
    """

    def __init__(self, position: np.ndarray, *, seed: int, epoch: int, size: int) -> None:
        self.size = size
        self.columns: Mapping[str, np.ndarray] = {}
        self.mirrored = np.zeros(len(position), bool)
        self._position, self._seed, self._epoch = position, seed, epoch

    def __len__(self) -> int:
        return len(self._position)

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """(B,) float64 in [low, high)."""
        unit = counter.uniform(counter.key(self._seed, self._epoch, name), self._position)
        return low + (high - low) * unit

    def landmarks(self) -> np.ndarray:
        """(B, 5, 2) float32, x and y in pixels of the images as they are by now, NaN where they are
        not known; for recipes that come before those that move pixels, but for flip."""
        points = self.columns.get("landmarks")
        if points is None:  # where a recipe is tried out
            return np.full((len(self), 5, 2), np.nan, np.float32)
        turned = mirrored_landmarks(points, width=self.size)
        return np.where(self.mirrored[:, None, None], turned, points)

    def integers(self, name: str, low: int, high: int) -> np.ndarray:
        """(B,) int32 in [low, high], both ends included."""
        return np.floor(self(name, low, high + 1)).astype(np.int32)

    def chance(self, name: str, probability: float) -> np.ndarray:
        """(B,) bool, true with this probability."""
        return self(name) < probability

    def factors(self, name: str, reach: float) -> np.ndarray:
        """(B,) float32 in [1 − reach, 1 + reach)."""
        return self(name, 1 - reach, 1 + reach).astype(np.float32)


class Recipe(NamedTuple):
    """`draw` makes the arguments of a batch, `apply` uses them on (H, W, 3) uint8 images.

    `needs` names the columns that `draw` reads. `moves`: landmarks are elsewhere afterwards.
    """

    draw: Callable[[Draw], Mapping[str, Argument]]
    apply: Callable[..., Node]
    needs: tuple[str, ...] = ()
    moves: bool = False


def beside(node: Node, images: Node) -> Node:
    """An argument on the device of the images, for operators that take it as an input."""
    return node.gpu() if images.device == "gpu" else node
