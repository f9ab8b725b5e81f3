"""Margins that treat every row alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heads.margins.angles import rotate, rotate_acute, stretch
from heads.margins.base import Margin, StepContext, Target
from heads.parameters import check, check_angle, check_flag


@dataclass(frozen=True, kw_only=True)
class Softmax(Margin):
    """No margin: the normalized softmax of NormFace (Wang et al., 2017, arXiv:1704.06369).

    Its slope is 1, so both gradients are the same.
    """

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        return Target(cosine, torch.ones_like(cosine))


@dataclass(frozen=True, kw_only=True)
class SphereFace(Margin):
    """cos(mθ) (Liu et al., CVPR 2017, arXiv:1704.08063).

    In the paper's piecewise form (-1)^k cos(mθ) − 2k with k = floor(mθ/π), which is monotone; here
    m may be any real number. The first release had m = 4. While the margin grows the factor is
    1 + (m − 1) · context.factor; the paper's blend with the plain cosine is not done.

    Args:
        margin: m, a factor on θ, in [1, 8].
    """

    margin: float = 1.7

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "margin", lambda margin: 1 <= margin <= 8, "[1, 8]")

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        multiplier = 1 + (self.margin - 1) * context.factor
        return Target(*stretch(cosine, multiplier, torch.zeros_like(multiplier)))


@dataclass(frozen=True, kw_only=True)
class CosFace(Margin):
    """cosθ − m (Wang et al., CVPR 2018, arXiv:1801.09414).

    Its slope is 1, so both gradients are the same.

    Args:
        margin: m, in cosine units, in [0, 1].
    """

    margin: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "margin", lambda margin: 0 <= margin <= 1, "[0, 1]")

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        return Target(cosine - self.margin * context.factor, torch.ones_like(cosine))


@dataclass(frozen=True, kw_only=True)
class ArcFace(Margin):
    """cos(θ + m) (Deng et al., CVPR 2019, arXiv:1801.07698).

    Where θ + m > π the cosine would rise again, so the target is cosθ − m·sin m there, with slope
    1: lower than -1, which cos(θ + m) reaches at the border, hence monotone over [-1, 1]. This
    holds for both gradients.

    Args:
        margin: m, in radians, in [0, π/2).
        easy_margin: True: the margin acts where θ < π/2 alone, and cosθ stays as it is elsewhere,
            with nothing subtracted, as in the authors' MXNet code. It falls by sin m at θ = π/2, so
            it is not monotone there.
    """

    margin: float = 0.5
    easy_margin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_angle(self, "margin")
        check_flag(self, "easy_margin")

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        turn = rotate_acute if self.easy_margin else rotate
        return Target(*turn(cosine, self.margin * context.factor))


@dataclass(frozen=True, kw_only=True)
class Combined(Margin):
    """cos(m1·θ + m2) − m3, the three margins of the ArcFace paper in one (arXiv:1801.07698).

    Beyond π the cosine goes on as SphereFace's does, so it is monotone; ArcFace, the same as m2
    alone up to π, goes on otherwise. arcface_torch's loss of this kind ignores m1, and m2 when
    m3 > 0; here all three count.

    Args:
        m1: a factor on θ, in [1, 8].
        m2: radians, in [0, π/2).
        m3: cosine units, in [0, 1].
    """

    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "m1", lambda margin: 1 <= margin <= 8, "[1, 8]")
        check_angle(self, "m2")
        check(self, "m3", lambda margin: 0 <= margin <= 1, "[0, 1]")

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        factor = context.factor
        bent, slope = stretch(cosine, 1 + (self.m1 - 1) * factor, self.m2 * factor)
        return Target(bent - self.m3 * factor, slope)
