"""CR-FIQA's quality: how well an image can be told from the nearest other person, regressed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from heads.extra_terms.base import ExtraTerm, TermInput, TermShare
from heads.parameters import check

# Keeps the ratio's divisor off 0, as in the paper.
_EPSILON = 1e-9


@dataclass(frozen=True, kw_only=True)
class Classifiability(ExtraTerm):
    """Learns an image's quality beside its embedding (Boutros et al., CVPR 2023, arXiv:2112.06592).

    The quality q = w·x / √D + b of an embedding x of D numbers, not normalized, is drawn by smooth
    L1 to the certainty ratio of the image: the cosine to its own class's center over 1 plus the
    largest cosine to another class in the step. The ratio gets no gradient; x, w and b do. w and b
    start at 0 and are learned as the centers are, for which x is divided by √D: the paper's linear
    layer is learned with the backbone and needs its clipping.

    The authors' code leaves the 1 out, with which the paper keeps the divisor above 0. A row that
    sees no other class does not count.

    Args:
        beta: where smooth L1 becomes linear, finite and > 0.
    """

    weight: float = 10.0
    beta: float = 0.5

    uses_largest_negative: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "beta", lambda beta: beta > 0, "(0, inf)")

    def initial_learned(self, embedding_dim: int) -> tuple[float, ...]:
        return (0.0,) * (embedding_dim + 1)

    def quality(self, embeddings: Tensor, learned: Tensor) -> Tensor:
        """(N,) quality of (N, D) embeddings as the backbone leaves them.

        Args:
            learned: (D + 1,) what the term has learned, the end of the head's `learned` where it is
                the last term.
        """
        return embeddings @ learned[:-1] / math.sqrt(embeddings.shape[1]) + learned[-1]

    def share(self, given: TermInput) -> TermShare:
        assert given.largest_negative is not None, "the head knows that it is used"
        mine, dim = given.mine, given.unit.shape[1]
        embeddings = given.unit[mine] * given.norms[mine].unsqueeze(1)  # (B, D)
        others = given.largest_negative[mine]
        ratio = given.target[mine] / (others + (1 + _EPSILON))
        found = self.quality(embeddings, given.learned)
        wanted = torch.where(others > -math.inf, ratio, found)  # (B,)

        weight = self.weight / len(given.unit)
        loss = weight * smooth_l1_loss(found, wanted, beta=self.beta, reduction="sum")
        pull = weight * ((found - wanted) / self.beta).clamp(-1, 1)  # (B,) d loss / d quality
        by_weights = embeddings.T @ pull / math.sqrt(dim)
        return TermShare(
            loss=loss,
            embeddings=pull.unsqueeze(1) * given.learned[:-1] / math.sqrt(dim),
            learned=torch.cat((by_weights, pull.sum().view(1))),
            start=torch.full_like(given.learned, math.nan),
        )
