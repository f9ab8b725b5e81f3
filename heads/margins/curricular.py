"""CurricularFace: a margin on the target that also weighs the negatives, ever harder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from heads.margins.angles import cos_of_sum, rotate
from heads.margins.base import Margin, StepContext, Target
from heads.negatives import Negatives
from heads.parameters import check_angle

# The weight of a batch in the running mean, a constant in the paper.
_BATCH_WEIGHT = 0.01


@dataclass(frozen=True, kw_only=True)
class CurricularFace(Margin):
    """ArcFace's target; negatives c above it count as c·(t + c) (Huang et al., CVPR 2020).

    arXiv:2004.00288.

    The state is (t,), a running mean of the target cosines that starts at 0. It is updated with the
    global batch before it is used and gets no gradient. A negative is hard when its cosine is above
    cos(θ + m) of its row, without ArcFace's continuation beyond π, as in the authors' code.

    straight_through concerns the target alone: the negatives' slope is exact in both modes. At
    factor 0 the target is bare, but negatives above it are still weighed.

    Args:
        margin: radians, in [0, π/2).
    """

    margin: float = 0.5

    uses_target_for_negatives: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_angle(self, "margin")

    def initial_state(self) -> tuple[float, ...]:
        return (0.0,)

    def negatives(self, cosine: Tensor | None, context: StepContext) -> Negatives:
        assert cosine is not None, "the hook is made of the target cosines"
        cosine, context = cosine.clamp(-1.0, 1.0), context.to(cosine.dtype)
        hard_above = cos_of_sum(cosine, self.margin * context.factor)
        easing = _easing(cosine, context)[0]
        return super().negatives(cosine, context)._replace(hard_above=hard_above, easing=easing)

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        bent, slope = rotate(cosine, self.margin * context.factor)
        return Target(bent, slope, state=_easing(cosine, context))


def _easing(cosine: Tensor, context: StepContext) -> Tensor:
    """(1,) t after this step, from the clamped (N,) cosines of the global batch."""
    return _BATCH_WEIGHT * cosine.mean() + (1 - _BATCH_WEIGHT) * context.state
