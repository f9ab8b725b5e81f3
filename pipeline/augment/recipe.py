"""What a recipe is: draws for the images of a batch, and what DALI does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline import counter

# DALI's nodes have no public type that annotations could name.
Node = Any
# An argument input: an array whose first dimension is the batch, or one array an image.
Argument = np.ndarray | list[np.ndarray]


class Draw:
    """Uniform draws for the images of one batch, each named for what it decides."""

    def __init__(self, position: np.ndarray, *, seed: int, epoch: int, size: int) -> None:
        self.size = size  # pixels: images are (size, size, 3)
        self._position, self._seed, self._epoch = position, seed, epoch

    def __len__(self) -> int:
        return len(self._position)

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """(B,) float64 in [low, high)."""
        unit = counter.uniform(counter.key(self._seed, self._epoch, name), self._position)
        return low + (high - low) * unit

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
    """`draw` makes the arguments of a batch, `apply` uses them on (H, W, 3) uint8 images."""

    draw: Callable[[Draw], Mapping[str, Argument]]
    apply: Callable[..., Node]


def beside(node: Node, images: Node) -> Node:
    """An argument on the device of the images, for operators that take it as an input."""
    return node.gpu() if images.device == "gpu" else node
