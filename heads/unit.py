"""Embeddings on the unit sphere, and gradients on their way back from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reciprocal(norms: Tensor) -> Tensor:
    """1 / norms, 0 for 0, and NaN for a length that overflowed: such a row has no direction."""
    inverse = torch.where(norms < torch.finfo(norms.dtype).tiny, 0.0, 1 / norms)
    return torch.where(torch.isposinf(norms), math.nan, inverse)


def through_normalization(grad: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """(N, D) gradient of unit rows → that of the rows x: (g - (g·e) e) / |x|, with e = x / |x|.

    Args:
        unit: (N, D).
        norms: (N,) lengths of the rows.
    """
    along = (grad * unit).sum(1, keepdim=True)  # (N, 1)
    return (grad - along * unit) * reciprocal(norms.unsqueeze(1))
