"""From cosines to the loss: the target cosines, the margin, and what the gradients need of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from heads.cosine_softmax import Terms, inverse_norms
from heads.margins import Target
from heads.sampling import Sample


class Loss(NamedTuple):
    """mean: 0-d, of the global batch. terms: for the second pass over the classes.

    norm_grad: (G,) d mean / d feature norm, or None where the margin leaves the norms alone.
    """

    mean: Tensor
    terms: Terms
    norm_grad: Tensor | None


def target_cosines(
    embeddings: Tensor, centers: Tensor, sample: Sample, subcenters: int
) -> tuple[Tensor, Tensor]:
    """(G,) cosine of each row to its own class's nearest sub-center, and int64 which that is.

    embeddings: (G, D) of unit length in the centers' dtype; centers: (n, K·D). Both results are 0
    where the class is not on this rank. In full precision always: the margin acts on this number,
    and a rounded one would be off most where the loss is steepest.
    """
    positions = sample.positions
    if centers.shape[0] == 0:
        return embeddings.new_zeros(positions.shape), torch.zeros_like(positions)
    index = positions.clamp_min(0)
    if sample.rows is not None:
        index = sample.rows.index_select(0, index)
    own = centers.index_select(0, index).unflatten(1, (subcenters, -1))  # (G, K, D)
    lengths = inverse_norms(own.flatten(0, 1)).view(-1, subcenters)
    cosine, which = ((embeddings.unsqueeze(1) * own).sum(2) * lengths).max(1)
    here = positions >= 0
    return torch.where(here, cosine, 0.0), torch.where(here, which, 0)


def combine(negative: Tensor, target: Target, subcenter: Tensor, scale: float) -> Loss:
    """The loss of the global batch, from sums over every rank's classes; all inputs (G,).

    negative: log-sum-exp of the logits of all classes but the row's own. target: the margined
    cosine to that one. Where there is a penalty, it is added to the row's cross-entropy.
    """
    target_logit = scale * target.cosine
    # -log p(target) and p(target) - 1 through the logit's distance: no cancellation as p → 1.
    distance = negative - target_logit
    losses = torch.logaddexp(distance, torch.zeros_like(distance))
    pull = -torch.sigmoid(distance)  # d loss / d target logit
    assert target.slope is not None, "a margin's call fills it in"
    terms = Terms(torch.logaddexp(negative, target_logit), pull * target.slope, subcenter)
    norm_grad = None
    if target.norm_slope is not None:
        norm_grad = scale * pull * target.norm_slope
    if target.penalty is not None:
        losses = losses + target.penalty
        norm_grad = target.penalty_slope + (0 if norm_grad is None else norm_grad)
    if norm_grad is not None:
        norm_grad = norm_grad / negative.shape[0]
    return Loss(losses.mean(), terms, norm_grad)
