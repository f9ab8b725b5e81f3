"""Margins: what happens to the target cosine before the softmax. A few lines each.

A margin sees every row of the global batch at once (the target cosines and the feature norms) and
answers with the margined cosines and their slopes; the logit is `scale` times the margined cosine.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

GRADIENTS = ("exact", "straight_through")


class Target(NamedTuple):
    """The target after the margin, in cosine units (the scale is not yet applied).

    cosine: (N,) margined target, at most 1; below -1 where a margin is subtracted.
    slope:  (N,) d cosine / d (cosine before the margin); never negative.
    """

    cosine: Tensor
    slope: Tensor


@dataclass(frozen=True, kw_only=True)
class Margin(ABC):
    """A margin on the target cosine; call it with `cosine` and `norms`, both (N,) of one dtype.

    scale: the softmax's inverse temperature, finite and > 0.
    gradient: "exact" is the derivative of the margined cosine. "straight_through" takes the slope
        to be 1, which is what arcface_torch computes, its arccos and cos standing under no_grad;
        accuracies quoted from arcface_torch were trained so.

    Raises ValueError when built with a parameter outside its range.
    """

    scale: float = 64.0
    gradient: str = "exact"

    def __post_init__(self) -> None:
        _check(self, "scale", lambda scale: scale > 0, "(0, inf)")
        if self.gradient not in GRADIENTS:
            raise ValueError(
                f"{type(self).__name__}: gradient={self.gradient!r}, expected one of {GRADIENTS}"
            )

    def __call__(self, cosine: Tensor, norms: Tensor) -> Target:
        """(N,) target cosines and (N,) feature norms → Target of (N,), in the cosines' dtype.

        Cosines beyond [-1, 1], where rounding leaves them, are taken as the nearer end; NaN stays.
        """
        target = self._bend(cosine.clamp(-1.0, 1.0), norms)
        if self.gradient == "straight_through":
            return Target(target.cosine, torch.ones_like(target.slope))
        return target

    @abstractmethod
    def _bend(self, cosine: Tensor, norms: Tensor) -> Target:
        """The margin proper, with its exact slope; the cosines (N,) lie in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Softmax(Margin):
    """No margin: the normalised softmax of NormFace (Wang et al., 2017, arXiv:1704.06369)."""

    def _bend(self, cosine: Tensor, norms: Tensor) -> Target:
        return Target(cosine, torch.ones_like(cosine))


@dataclass(frozen=True, kw_only=True)
class CosFace(Margin):
    """cosθ − m (Wang et al., 2018, arXiv:1801.09414); margin in cosine units, in [0, 1].

    Its slope is 1, so both gradients are the same.
    """

    margin: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "margin", lambda margin: 0 <= margin <= 1, "[0, 1]")

    def _bend(self, cosine: Tensor, norms: Tensor) -> Target:
        return Target(cosine - self.margin, torch.ones_like(cosine))


@dataclass(frozen=True, kw_only=True)
class ArcFace(Margin):
    """cos(θ + m) (Deng et al., 2019, arXiv:1801.07698); margin in radians, in [0, π/2).

    Where θ + m > π the cosine would rise again, so the target is cosθ − m·sin m there, with slope
    1: lower than -1, which cos(θ + m) reaches at the border, hence monotone over [-1, 1]. This
    holds for both gradients.
    """

    margin: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "margin", lambda margin: 0 <= margin < math.pi / 2, "[0, π/2)")

    def _bend(self, cosine: Tensor, norms: Tensor) -> Target:
        cos_m, sin_m = math.cos(self.margin), math.sin(self.margin)
        sine_squared = (1 - cosine) * (1 + cosine)
        # The slope grows without bound as θ → 0 but always multiplies a vector of length sinθ, so
        # holding sinθ off zero costs nothing and keeps 0 · inf away.
        sine = sine_squared.clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
        within = cosine >= -cos_m  # θ + m ≤ π
        bent = cosine * cos_m - sine_squared.sqrt() * sin_m
        return Target(
            torch.where(within, bent, cosine - self.margin * sin_m),
            torch.where(within, cos_m + cosine / sine * sin_m, 1.0),
        )


MARGINS: dict[str, type[Margin]] = {"softmax": Softmax, "cosface": CosFace, "arcface": ArcFace}


def create_margin(name: str, /, **params: object) -> Margin:
    """The margin called `name` (a key of MARGINS), built with its own parameters.

    Raises ValueError for an unknown name, an unknown parameter or a value outside its range.
    """
    if name not in MARGINS:
        raise ValueError(f"unknown margin {name!r}, expected one of {', '.join(MARGINS)}")
    allowed = [field.name for field in fields(MARGINS[name])]
    unknown = [param for param in params if param not in allowed]
    if unknown:
        raise ValueError(
            f"margin {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(allowed)}"
        )
    return MARGINS[name](**params)


def _check(margin: Margin, name: str, fits: Callable[[float], bool], stated: str) -> None:
    value = getattr(margin, name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and fits(value)):
        raise ValueError(
            f"{type(margin).__name__}: {name}={value!r}, expected a finite number in {stated}"
        )
