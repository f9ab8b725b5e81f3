"""All extra terms of a head together, added up over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heads.extra_terms.base import ExtraTerm, TermInput
from heads.learned import LearnedStep
from heads.ranks import Ranks


class Total(NamedTuple):
    """loss: 0-d, alike on all ranks, NaN where any rank's gradient is. embeddings: (B, D)."""

    loss: Tensor
    embeddings: Tensor
    learned: LearnedStep


def add_up(
    terms: Sequence[ExtraTerm], given: TermInput, margin: Tensor, *, share: float, ranks: Ranks
) -> Total:
    """`share` times the terms, over all ranks: one collective.

    Args:
        given: its learned is the whole head's, the margin's first.
        margin: this rank's part of the gradient of what the margin learns, `share` included.
    """
    zero = given.norms.new_zeros(())
    grad = torch.zeros_like(given.unit[given.mine])
    loss, gradients, starts = zero, [margin], [torch.full_like(margin, torch.nan)]
    position = len(margin)
    for term in terms:
        count = len(term.initial_learned(given.unit.shape[1]))
        part = term.share(given._replace(learned=given.learned[position : position + count]))
        position += count
        loss, grad = loss + share * part.loss, grad + share * part.embeddings
        gradients.append(share * part.learned)
        starts.append(part.start)
    step = torch.stack((torch.cat(gradients), torch.cat(starts)))  # (2, k)
    # What is not finite in the gradient rides along.
    sums = torch.cat(((loss + 0 * grad.sum()).view(1), step.flatten()))
    sums = ranks.all_gather(sums).sum(0)
    return Total(sums[0], grad, LearnedStep(*sums[1:].view_as(step)))
