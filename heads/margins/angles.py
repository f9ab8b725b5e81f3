"""The two things that margins do to an angle θ, as functions of cosθ, monotone over all of it.

Slopes are d result / d cosθ. They grow without bound as sinθ → 0 but always multiply a vector of
length sinθ, so holding sinθ off zero costs nothing and keeps 0 · inf away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cos_of_sum(cosine: Tensor, angle: Tensor) -> Tensor:
    """cos(θ + angle) for (N,) cosθ in [-1, 1]; angle: 0-d or (N,)."""
    sine = ((1 - cosine) * (1 + cosine)).sqrt()
    return cosine * torch.cos(angle) - sine * torch.sin(angle)


def rotate(cosine: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """cos(θ + angle), kept monotone, and its slope; both (N,).

    Where θ + angle > π the cosine would rise again, so the result is cosθ − angle · sin(angle)
    there, with slope 1: lower than -1, which cos(θ + angle) reaches at the border. Where
    θ + angle < 0 it is 1, with slope 0.

    Args:
        cosine: (N,) cosθ in [-1, 1].
        angle: 0-d or (N,), in [-π/2, π/2].
    """
    cos_a, sin_a = torch.cos(angle), torch.sin(angle)
    sine = ((1 - cosine) * (1 + cosine)).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    bent = cos_of_sum(cosine, angle)
    slope = (cos_a + cosine / sine * sin_a).clamp_min(0.0)  # rounding reaches below 0

    # Both are false for NaN, which so reaches the loss.
    beyond_pi = (angle > 0) & (cosine < -cos_a)
    below_zero = (angle < 0) & (cosine > cos_a)
    bent = torch.where(beyond_pi, cosine - angle * sin_a, bent).masked_fill(below_zero, 1.0)
    return bent, slope.masked_fill(beyond_pi, 1.0).masked_fill(below_zero, 0.0)


def rotate_acute(cosine: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """`rotate` where θ < π/2, cosθ elsewhere, and the slope; both (N,).

    Not monotone at θ = π/2, where it falls by sin(angle) as the cosine rises.
    """
    bent, slope = rotate(cosine, angle)
    acute = cosine > 0  # false for NaN, which stays in cosθ
    return torch.where(acute, bent, cosine), torch.where(acute, slope, 1.0)


def stretch(cosine: Tensor, multiplier: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """(-1)^k cos(φ) − 2k with φ = multiplier · θ + shift and k = floor(φ / π), and its slope.

    Both results are (N,). The first continues cos(φ) beyond π without a jump and without ever
    rising with θ.

    Args:
        cosine: (N,) cosθ in [-1, 1].
        multiplier: 0-d, at least 1.
        shift: 0-d, at least 0.
    """
    theta = torch.acos(cosine)
    angle = multiplier * theta + shift
    turns = torch.floor(angle / math.pi)
    sign = 1 - 2 * torch.remainder(turns, 2)
    # Held off both ends by as much as moves the cosine by one rounding.
    least = math.sqrt(torch.finfo(cosine.dtype).eps)
    held = theta.clamp(least, math.pi - least)
    # (-1)^k sin(φ) is |sin(φ)|, and stays so where rounding puts φ on the wrong side of kπ.
    slope = multiplier * torch.sin(multiplier * held + shift).abs() / torch.sin(held)
    return sign * torch.cos(angle) - 2 * turns, slope
