"""UniFace: every class is judged alone, against one threshold that is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.margins.base import Margin, StepContext, Target
from heads.negatives import Negatives, Threshold
from heads.parameters import check

# At the start a row's negatives are taken for its own class with a tenth of its weight.
_NEGATIVES_PER_LOGIT = 10


@dataclass(frozen=True, kw_only=True)
class UniFace(Margin):
    """The unified cross-entropy (Zhou et al., ICCV 2023).

    softplus(b − s(cosθ − m)) + λ · Σ softplus(s·cosθⱼ − b) over the negatives: no softmax, so that
    the cosines of all rows are pressed to their side of the same b. This is learned with the
    centers, by their rate, momentum and weight decay, from log(10 · classes in a step) on.

    The authors' code cuts logits at ±s, beyond which it has no gradient; here none is cut.
    The slope is 1, so both gradients are the same.

    Args:
        margin: m, in cosine units, in [0, 1].
        negative_weight: λ, in (0, 1]. What the paper calls r is head.sample_rate.
    """

    margin: float = 0.4
    negative_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "margin", lambda margin: 0 <= margin <= 1, "[0, 1]")
        check(self, "negative_weight", lambda weight: 0 < weight <= 1, "(0, 1]")

    def initial_learned(self, classes: float) -> tuple[float, ...]:
        return (math.log(_NEGATIVES_PER_LOGIT * classes),)

    def negatives(self, cosine: Tensor | None, context: StepContext) -> Negatives:
        threshold = Threshold(context.learned[0], self.scale, self.negative_weight)
        return super().negatives(cosine, context)._replace(threshold=threshold)

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        return Target(cosine - self.margin * context.factor, torch.ones_like(cosine))
