"""Margins that read an image's quality off its feature norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.margins.angles import rotate, rotate_acute
from heads.margins.base import Margin, StepContext, Target
from heads.parameters import check, check_angle, check_flag


@dataclass(frozen=True, kw_only=True)
class MagFace(Margin):
    """cos(θ + m(a)) with m linear in the feature norm a (Meng et al., CVPR 2021, arXiv:2103.06627).

    The gradient reaches the norm, through the margin and through the penalty, and is zero where
    the norm is clamped. It is exact in both gradient modes; straight_through concerns the cosine
    alone. The factor of the step scales the margin, not the penalty.

    Args:
        l_a, u_a: the norm is clamped to [l_a, u_a]; 0 < l_a < u_a.
        l_margin, u_margin: the margins there, in radians; 0 <= l_margin <= u_margin < π/2.
        lambda_g: weight of the penalty a/u_a² + 1/a on the clamped norm, at least 0. The paper's
            theory asks for at least s·K·(u_a·l_a)²/(u_a² − l_a²),
            K = (u_margin − l_margin)/(u_a − l_a): 22.6 with these defaults.
        easy_margin: True: cosθ where cosθ <= 0, which falls by sin m at θ = π/2, so it is not
            monotone there. False: ArcFace's continuation beyond π. The authors' code has both, and
            True by default.
    """

    l_a: float = 10.0
    u_a: float = 110.0
    l_margin: float = 0.45
    u_margin: float = 0.8
    lambda_g: float = 35.0
    easy_margin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "l_a", lambda norm: norm > 0, "(0, inf)")
        check(self, "u_a", lambda norm: norm > self.l_a, "(l_a, inf)")
        check_angle(self, "l_margin")
        check(
            self, "u_margin", lambda angle: self.l_margin <= angle < math.pi / 2, "[l_margin, π/2)"
        )
        check(self, "lambda_g", lambda weight: weight >= 0, "[0, inf)")
        check_flag(self, "easy_margin")

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        held = norms.clamp(self.l_a, self.u_a)
        inside = (norms >= self.l_a) & (norms <= self.u_a)
        growth = (self.u_margin - self.l_margin) / (self.u_a - self.l_a)
        angle = (self.l_margin + growth * (held - self.l_a)) * context.factor

        bent, slope = (rotate_acute if self.easy_margin else rotate)(cosine, angle)
        cos_m, sin_m = torch.cos(angle), torch.sin(angle)
        by_angle = torch.where(
            cosine < -cos_m, -(sin_m + angle * cos_m), -torch.sin(torch.acos(cosine) + angle)
        )
        if self.easy_margin:
            by_angle = torch.where(cosine > 0, by_angle, 0.0)
        return Target(
            bent,
            slope,
            norm_slope=torch.where(inside, by_angle * (growth * context.factor), 0.0),
            penalty=self.lambda_g * (held / self.u_a**2 + 1 / held),
            penalty_slope=torch.where(
                inside, self.lambda_g * (1 / self.u_a**2 - 1 / held.square()), 0.0
            ),
        )


@dataclass(frozen=True, kw_only=True)
class AdaFace(Margin):
    """cos(θ − m·ẑ) − (m + m·ẑ), ẑ from the norm's place among others (Kim et al., CVPR 2022).

    arXiv:2204.00964. ẑ = (norm − mean) / (std + 0.001) · h, clipped to [-1, 1]; norms are clipped
    to [0.001, 100] first and get no gradient.

    The state is (mean, std), updated with the global batch before it is used. The standard
    deviation is the unbiased one; a batch of one row leaves the running one as it is. A NaN norm
    makes every row and the state NaN; the head then keeps the old state.

    Beyond π it goes on as ArcFace; where θ − m·ẑ < 0 the target is 1 − (m + m·ẑ), flat, as in the
    authors' code. That code also keeps cosines and angles 0.001 away from their ends and is flat
    beyond π.

    Args:
        margin: m, in [0, 1].
        h: in (0, 1].
        t_alpha: the weight of a batch in the running mean and standard deviation of the norms, in
            (0, 1].
    """

    margin: float = 0.4
    h: float = 0.333
    t_alpha: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "margin", lambda margin: 0 <= margin <= 1, "[0, 1]")
        check(self, "h", lambda h: 0 < h <= 1, "(0, 1]")
        check(self, "t_alpha", lambda weight: 0 < weight <= 1, "(0, 1]")

    def initial_state(self) -> tuple[float, ...]:
        return (20.0, 100.0)

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        held = norms.clamp(1e-3, 100.0)
        std = held.std() if held.shape[0] > 1 else context.state[1]
        state = torch.lerp(context.state, torch.stack([held.mean(), std]), self.t_alpha)
        quality = ((held - state[0]) / (state[1] + 1e-3) * self.h).clamp(-1.0, 1.0)  # (N,)

        margin = self.margin * context.factor
        bent, slope = rotate(cosine, -margin * quality)
        return Target(bent - (margin + margin * quality), slope, state=state)
