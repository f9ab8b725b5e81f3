"""What keeps the coefficients of the second pass within their dtype's range, and says if it did."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def coefficient_gain(global_batch: int, compute_dtype: torch.dtype) -> float:
    """A power of two that lifts small probabilities out of float16's subnormals, else 1.

    A product over the batch adds up to `global_batch` probabilities of at most 1, with the 8 to
    spare for target terms, which `bound_targets` makes fit.
    """
    if compute_dtype != torch.float16:
        return 1.0
    return 2.0 ** min(5, math.floor(math.log2(torch.finfo(torch.float16).max / global_batch / 8)))


def bound_targets(
    target: Tensor, positions: Tensor, *, gain: float, compute_dtype: torch.dtype
) -> Tensor:
    """(G,) target terms, in float16 bounded so that no class's own rows pass half of its range.

    Slopes reach thousands where a row lies on its center or opposite to it, and a center's product
    adds up all rows of its class: unbounded, one such row would cost the whole step. A row alone in
    its class is cut at a slope of 1,000 or more, as far from the center's axis as rounding moves
    it.

    Args:
        positions: as in Sample.
    """
    if compute_dtype != torch.float16:
        return target
    most = torch.finfo(compute_dtype).max / (2 * gain) / _class_sizes(positions)
    return target.clamp(-most, most)


def reach_of(factor: Tensor, probability: Tensor, target: Tensor, positions: Tensor) -> Tensor:
    """0-d bound, for any class, of the sum of its coefficients' magnitudes: no pass over them.

    Args:
        factor: (n, 1) what a class's coefficients are multiplied by.
        probability: 0-d bound of what a row adds to a class that is not its own.
        target: (G,) what it adds to its own.
        positions: as in Sample.
    """
    most = factor.amax() if len(factor) else factor.sum()
    own = (_class_sizes(positions) * target.abs()).amax()
    return most * (len(target) * probability + own)


def is_finite(pull: Tensor, drift: Tensor, reach: Tensor, dtype: torch.dtype) -> Tensor:
    """0-d bool, without looking at the product: `reach` (0-d) bounds its elements.

    No element exceeds the sum of its coefficients' magnitudes, as the embeddings are of unit
    length; NaN and inf show in that sum.

    Args:
        dtype: the narrowest that the product went through.
    """
    fits = reach <= torch.finfo(dtype).max
    largest = reach * pull + drift.abs()
    return fits & torch.isfinite(largest.sum())


def _class_sizes(positions: Tensor) -> Tensor:
    """(G,) how many rows of the batch have the row's class."""
    ordered = positions.sort().values
    first = torch.searchsorted(ordered, positions)
    return torch.searchsorted(ordered, positions, right=True) - first
