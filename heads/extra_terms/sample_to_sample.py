"""UniTSFace's loss between images: all pairs of a batch against one threshold that is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import softplus

from heads.extra_terms.base import ExtraTerm, TermInput, TermShare
from heads.parameters import check
from heads.unit import through_normalization


@dataclass(frozen=True, kw_only=True)
class SampleToSample(ExtraTerm):
    """The unified threshold integrated sample-to-sample loss (Zhou et al., NeurIPS 2023).

    Of row i, over the other rows j of the global batch:

        Σ softplus(b − s(cosᵢⱼ − m)) over those of its person + Σ softplus(s·cosᵢⱼ − b) over others

    The first step measures b, as the mean over the rows of the log-sum-exp of s·cos to other
    persons' images; the term's loss is 0 in it. From then on b is learned as the centers are.

    The paper pairs each person with one other image of the same; the authors' code keeps the last
    embedding of every class and compares with these. Here the pairs are those of the batch, so it
    wants persons who come more than once: data.order=balanced. A batch without such a pair still
    presses others apart.

    Args:
        margin: m, in cosine units, in [0, 1].
        scale: s, finite and > 0.
    """

    margin: float = 0.1
    scale: float = 64.0

    needs_whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "margin", lambda margin: 0 <= margin <= 1, "[0, 1]")
        check(self, "scale", lambda scale: scale > 0, "(0, inf)")

    def initial_learned(self, embedding_dim: int) -> tuple[float, ...]:
        return (0.0,)  # not measured yet

    def scratch(self, batch: int, global_batch: int) -> int:
        return 6 * batch * global_batch

    def share(self, given: TermInput) -> TermShare:
        rows, count = given.unit[given.mine], len(given.unit)
        logit = self.scale * (rows @ given.unit.T)  # (B, G)
        same = given.labels[given.mine].unsqueeze(1) == given.labels  # (B, G) bool
        start = logit.masked_fill(same, -math.inf).logsumexp(1).sum() / count

        # A pair of one person counts by its distance below the threshold, one of two above it.
        threshold = given.learned[0]
        over = torch.where(same, threshold - logit + self.scale * self.margin, logit - threshold)
        own = torch.arange(count, device=logit.device)
        over = over.masked_fill(own[given.mine].unsqueeze(1) == own, -math.inf)
        weight = (threshold != 0).to(logit.dtype) * (self.weight / count)
        pull = weight * torch.sigmoid(over)
        pull = torch.where(same, -pull, pull)  # d loss / d logit of one end's loss
        grad = (2 * self.scale) * (pull @ given.unit)  # both ends have the same
        return TermShare(
            loss=weight * softplus(over).sum(),
            embeddings=through_normalization(grad, rows, given.norms[given.mine]),
            learned=-pull.sum().view(1),
            start=start.view(1),
        )
