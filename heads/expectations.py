"""The expectation of each class's features, and the penalty that steadies centers by it (LVFace).

Beside its center every class has a bank row e: what its images' embeddings of unit length have been
on the way, newer ones weighing more where they are far from it. An image x of class i then competes
twice, with the other centers and with the other expectations:

    log (1 + Σ_j exp(s cos θ_j) / exp(s (cos θ_i)_m) + Σ_j exp(s cos φ_j) / exp(s (cos φ_i - m')))

with θ the angles to the centers, m the margin's change, φ the angles to the expectations, and j the
other classes of the step. The gradient reaches x; expectations are moved by averages alone:
e ← α e + (1 - α) x, α = sigmoid(cos(x, e)).

You et al., ICCV 2025, arXiv:2501.13420, published no training code, and the equations here are from
a public summary of it. Not said there, and chosen here: expectations begin at zeros, an image whose
class has none yet is not penalized, the first x is taken as it is, and the images of a class in one
step count as one, their mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from heads.passes.cosine_softmax import Terms, inverse_norms
from heads.sampling import Sample

EXPECTATIONS = "expectations"  # the head's buffer: a row a class
NOT_IN_KERNELS = "the kernels are not tested with expectation_margin"


def own_cosines(unit: Tensor, bank: Tensor, sample: Sample) -> Tensor:
    """(G,) cosine to the expectation of a row's own class, inf where that has none yet.

    0 where the class is not on this rank.

    Args:
        unit: (G, D) embeddings of unit length.
        bank: (n, D) expectations of this rank's classes.
    """
    if not len(bank):
        return unit.new_zeros(len(unit))
    own = bank.index_select(0, own_rows(sample))
    inverse = inverse_norms(own).squeeze(1)
    cosine = torch.where(inverse > 0, (unit * own).sum(1) * inverse, math.inf)
    return torch.where(sample.positions >= 0, cosine, 0.0)


def own_rows(sample: Sample) -> Tensor:
    """(G,) which of the rank's rows is that of a row's own class; any where it has none here."""
    index = sample.positions.clamp_min(0)
    return index if sample.rows is None else sample.rows.index_select(0, index)


def moves(unit: Tensor, labels: Tensor, bank: Tensor, sample: Sample) -> Tensor:
    """(G, D) what is added to the expectations at `own_rows`: each class's once, else -0.

    So that the sum has the same bits in any order, and adding nothing changes none.
    """
    if not len(bank):
        return torch.full_like(unit, -0.0)
    same = labels.unsqueeze(1) == labels  # (G, G)
    first = same.int().argmax(1)  # the first row of the same class
    mean = (same.to(unit.dtype) @ unit / same.sum(1, keepdim=True)).index_select(0, first)
    own = bank.index_select(0, own_rows(sample))
    inverse = inverse_norms(own)
    cosine = (mean * own).sum(1, keepdim=True) * inverse * inverse_norms(mean)
    kept = torch.where(inverse > 0, torch.sigmoid(cosine), 0.0)  # α
    once = first == torch.arange(len(labels), device=labels.device)
    counts = (once & (sample.positions >= 0)).unsqueeze(1)
    return torch.where(counts, (1 - kept) * (mean - own), -0.0)


def beside(distance: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """(G,) losses log(1 + exp(distance) + exp(other)), and their slopes by the distance."""
    rest = softplus(other, threshold=700)
    return rest + softplus(distance - rest, threshold=700), torch.sigmoid(distance - rest)


def bank_terms(
    negative: Tensor, cosine: Tensor, other: Tensor, *, scale: float, margin: float
) -> tuple[Tensor, Terms]:
    """What the second pass over the bank needs, and the distance that the centers' one does.

    Args:
        negative: (G,) log-sum-exp over the other classes' expectations.
        cosine: (G,) to the own class's, from `own_cosines`.
        other: (G,) the distance of the centers' part.
    """
    logit = scale * (cosine - margin)
    distance = negative - logit
    losses, slope = beside(distance, other)
    return distance, Terms(logit + losses, -slope, torch.zeros_like(cosine, dtype=torch.int64))
