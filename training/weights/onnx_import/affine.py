"""Scales and shifts of channels, in whatever operators a graph has them, as BatchNorms of ours.

What an exporter has folded into the layer before it, or left out, becomes a BatchNorm of mean 0 and
variance 1, whose scale and shift do the same. In evaluation that is exact. In training it is not
the network any more: a BatchNorm then divides by the deviation of the batch, which the weights
before it have been divided by already, and adds a shift that was meant for other means. So before
such a network is trained on, training/weights/statistics.py gives these BatchNorms the statistics
of images, and a scale and shift that make up for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

EPS = nn.BatchNorm2d(1).eps  # of our BatchNorms


@dataclass(frozen=True)
class Affine:
    """scale · x + shift, a channel each: (C,) float64."""

    scale: np.ndarray
    shift: np.ndarray

    @classmethod
    def identity(cls, channels: int) -> Affine:
        return cls(np.ones(channels), np.zeros(channels))

    def then(self, scale: np.ndarray | float, shift: np.ndarray | float) -> Affine:
        """This, and after it scale · y + shift."""
        return Affine(self.scale * scale, self.shift * scale + shift)


@dataclass(frozen=True)
class Norm:
    """A BatchNorm in evaluation: (x - mean) / √(var + eps) · weight + bias, (C,) float64 each."""

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float

    def as_affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Its scale and shift."""
        scale = self.weight / np.sqrt(self.var + self.eps)
        return scale, self.bias - self.mean * scale


def as_norm(before: Affine, norm: Norm | None, after: Affine) -> tuple[dict[str, np.ndarray], bool]:
    """One BatchNorm of ours that does all three, by the names of its tensors, float32.

    Returns:
        Those, and whether its statistics are those of images; otherwise they are 0 and 1.
    """
    if norm is not None and (before.scale == 1).all():
        # The same deviations, of values that lie elsewhere.
        factor = np.sqrt((norm.var + EPS) / (norm.var + norm.eps)) * after.scale
        tensors = {
            "weight": norm.weight * factor,
            "bias": norm.bias * after.scale + after.shift,
            "running_mean": norm.mean - before.shift,
            "running_var": norm.var,
        }
        return _as_float32(tensors), True
    whole = before
    if norm is not None:
        whole = whole.then(*norm.as_affine())
    whole = whole.then(after.scale, after.shift)
    channels = len(whole.scale)
    tensors = {
        "weight": whole.scale,
        "bias": whole.shift,
        "running_mean": np.zeros(channels),
        "running_var": np.full(channels, 1 - EPS),
    }
    return _as_float32(tensors), False


def _as_float32(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float32) for name, value in tensors.items()}
