"""Margins drawn again for every row at every step (ElasticFace, Boutros et al., CVPRW 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heads.counter import normal
from heads.margins.angles import rotate
from heads.margins.base import Margin, StepContext, Target
from heads.parameters import check, check_angle, check_flag


@dataclass(frozen=True, kw_only=True)
class _Elastic(Margin):
    """What both kinds share: the draws and who gets which.

    The draws are a pure function of the step's key and the row's place in the global batch: the
    same after a resume and on any number of ranks.
    """

    margin: float
    std: float | None = None
    plus: bool = False

    # The standard deviations that the paper settles on, without and with plus.
    paper_stds: ClassVar[tuple[float, float]]
    # What margins are clamped to, from 0 on.
    largest: ClassVar[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std is not None:
            check(self, "std", lambda std: 0 <= std <= 1, "[0, 1], or None for the paper's")
        check_flag(self, "plus")

    def _margins(self, cosine: Tensor, context: StepContext) -> Tensor:
        """(N,) this step's margins."""
        std = self.paper_stds[self.plus] if self.std is None else self.std
        drawn = self.margin + std * normal(context.key, context.index, cosine.dtype)
        drawn = drawn.clamp(0.0, self.largest)
        if self.plus:
            hardest_first = torch.argsort(cosine, stable=True)
            largest_first = drawn.sort(descending=True).values
            drawn = torch.zeros_like(drawn).scatter(0, hardest_first, largest_first)
        return drawn * context.factor


@dataclass(frozen=True, kw_only=True)
class ElasticArcFace(_Elastic):
    """cos(θ + m), m drawn from N(margin, std²) for each row (arXiv:2109.09416).

    Draws are clamped to [0, π/2].

    Beyond π it goes on as ArcFace. For given draws it is monotone, with plus too: a row whose
    cosine rises can only get a smaller margin.

    Args:
        margin: radians, in [0, π/2).
        std: in [0, 1]; None is the paper's, 0.05, with plus 0.0175.
        plus: ElasticFace-Arc+: the largest of the drawn margins go to the smallest target cosines
            of the global batch. The authors' code indexes by the sorting order instead of its
            inverse, so that they miss the rows they are meant for; here they do not.
    """

    margin: float = 0.5

    paper_stds: ClassVar[tuple[float, float]] = (0.05, 0.0175)
    largest: ClassVar[float] = math.pi / 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_angle(self, "margin")

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        return Target(*rotate(cosine, self._margins(cosine, context)))


@dataclass(frozen=True, kw_only=True)
class ElasticCosFace(_Elastic):
    """cosθ − m, m drawn from N(margin, std²) for each row (arXiv:2109.09416).

    Draws are clamped to [0, 1]. The slope is 1, so both gradients are the same.

    Args:
        margin: cosine units, in [0, 1].
        std: in [0, 1]; None is the paper's, 0.05, with plus 0.02.
        plus: as in ElasticArcFace.
    """

    margin: float = 0.35

    paper_stds: ClassVar[tuple[float, float]] = (0.05, 0.02)
    largest: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "margin", lambda margin: 0 <= margin <= 1, "[0, 1]")

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        return Target(cosine - self._margins(cosine, context), torch.ones_like(cosine))
