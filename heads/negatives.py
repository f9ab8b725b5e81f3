"""What happens to the cosines of the other classes: nothing, as a rule.

A margin changes the target logit alone. The three methods that reach for the negatives do so
through one elementwise hook inside each chunk of classes, described here by values that a GPU
kernel can take as they are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

# Logits below it count as it does: their share is nothing, and no exponential of it is 0.
_LEAST_LOGIT = -80.0


class Threshold(NamedTuple):
    """UniFace's (Zhou et al., 2023): every class is judged alone, by its logit against one value.

    Attributes:
        value: 0-d, in logits.
        scale: what makes logits of cosines, the margin's.
        weight: of the negatives beside the target, in (0, 1].
    """

    value: Tensor
    scale: float
    weight: float


class Negatives(NamedTuple):
    """The hook of one step; by default it leaves every cosine as it is.

    Attributes:
        filter_above: inter-class filtering (PartialFC, An et al., 2022, arXiv:2203.15565): a
            negative with a cosine above it is taken for a mislabeled positive and leaves the sum.
        hard_above: (G,), CurricularFace (Huang et al., 2020, arXiv:2004.00288): a negative c above
            its row's value counts as c · (easing + c). Filtering goes by the cosine before that.
        easing: 0-d, there where hard_above is.
        threshold: a negative counts as the cosine whose exponentiated logit is its softplus over
            the threshold, so that the log-sum-exp is the log of the sum of these. Not with
            hard_above.
    """

    filter_above: float = math.inf
    hard_above: Tensor | None = None
    easing: Tensor | None = None
    threshold: Threshold | None = None

    def bend(self, cosine: Tensor) -> tuple[Tensor, Tensor | None]:
        """(G, n) cosines → (G, n) bent, -inf where filtered, and their slopes, None for all 1."""
        bent, slope = cosine, None
        if self.hard_above is not None:
            hard = cosine > self.hard_above.unsqueeze(1)
            bent = torch.where(hard, cosine * (self.easing + cosine), cosine)
            slope = torch.where(hard, self.easing + 2 * cosine, 1.0)
        if self.threshold is not None:
            value, scale, _ = self.threshold
            logit = (scale * cosine - value).clamp_min(_LEAST_LOGIT)
            soft = softplus(logit)
            bent, slope = soft.log() / scale, torch.sigmoid(logit) / soft
        if self.filter_above < math.inf:
            # NaN is kept: a poisoned row must reach the loss.
            bent = torch.where(cosine > self.filter_above, -math.inf, bent)
        return bent, slope
