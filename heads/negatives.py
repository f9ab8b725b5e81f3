"""What happens to the cosines of the other classes: nothing, as a rule.

A margin changes the target logit alone. The two methods that reach for the negatives do so through
one elementwise hook inside each chunk of classes, described here by values that a GPU kernel can
take as they are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Negatives(NamedTuple):
    """The hook of one step; by default it leaves every cosine as it is.

    Attributes:
        filter_above: inter-class filtering (PartialFC, An et al., 2022, arXiv:2203.15565): a
            negative with a cosine above it is taken for a mislabeled positive and leaves the sum.
        hard_above: (G,), CurricularFace (Huang et al., 2020, arXiv:2004.00288): a negative c above
            its row's value counts as c · (easing + c). Filtering goes by the cosine before that.
        easing: 0-d, there where hard_above is.
    """

    filter_above: float = math.inf
    hard_above: Tensor | None = None
    easing: Tensor | None = None

    def bend(self, cosine: Tensor) -> tuple[Tensor, Tensor | None]:
        """(G, n) cosines → (G, n) bent, -inf where filtered, and their slopes, None for all 1."""
        bent, slope = cosine, None
        if self.hard_above is not None:
            hard = cosine > self.hard_above.unsqueeze(1)
            bent = torch.where(hard, cosine * (self.easing + cosine), cosine)
            slope = torch.where(hard, self.easing + 2 * cosine, 1.0)
        if self.filter_above < math.inf:
            # NaN is kept: a poisoned row must reach the loss.
            bent = torch.where(cosine > self.filter_above, -math.inf, bent)
        return bent, slope
