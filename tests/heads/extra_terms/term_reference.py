"""The extra terms in scalar loops over Python floats, from the papers' formulas."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from heads.extra_terms import Classifiability, SampleToSample


class TermReference(NamedTuple):
    """loss 0-d, weight included; gradients (G, D) and (k,); where what is learned starts, (k,). All
    float64."""

    loss: Tensor
    embedding_grad: Tensor
    learned_grad: Tensor
    start: Tensor


def scalar_sample_to_sample(
    term: SampleToSample, embeddings: Tensor, labels: Tensor, threshold: float
) -> TermReference:
    """Every ordered pair of different rows, one after another."""
    rows, people = embeddings.double().tolist(), labels.tolist()
    count = len(rows)
    lengths = [math.sqrt(sum(x * x for x in row)) for row in rows]
    units = [[x / length for x in row] for row, length in zip(rows, lengths)]
    loss = by_threshold = start = 0.0
    grad = [[0.0] * len(row) for row in rows]
    for i, one in enumerate(units):
        others = []
        for j, other in enumerate(units):
            if i == j:
                continue
            cosine = sum(a * b for a, b in zip(one, other))
            if people[i] == people[j]:
                wrong, way = threshold - term.scale * (cosine - term.margin), -1
            else:
                wrong, way = term.scale * cosine - threshold, 1
                others.append(term.scale * cosine)
            if threshold == 0:  # not measured yet
                continue
            weight = term.weight / count
            loss += weight * math.log1p(math.exp(wrong))
            by_logit = way * weight / (1 + math.exp(-wrong))
            by_threshold -= by_logit
            for d, (a, b) in enumerate(zip(one, other)):
                grad[i][d] += by_logit * term.scale * (b - cosine * a) / lengths[i]
                grad[j][d] += by_logit * term.scale * (a - cosine * b) / lengths[j]
        start += math.log(sum(map(math.exp, others))) / count if others else -math.inf
    return TermReference(*map(_double, (loss, grad, [by_threshold], [start])))


def scalar_classifiability(
    term: Classifiability,
    embeddings: Tensor,
    centers: Tensor,
    positions: Tensor,
    learned: Tensor,
    *,
    visible: Tensor,
    subcenters: int = 1,
    filter_above: float = math.inf,
) -> TermReference:
    """centers: (S·K, D) of the classes in the step. positions: (G,) each row's own among these S.
    visible: (G, S) bool, the others it sees. The start is NaN throughout."""
    rows, columns = embeddings.double().tolist(), centers.double().tolist()
    *weights, bias = learned.double().tolist()
    count, root = len(rows), math.sqrt(len(weights))
    loss, by_bias, by_weights = 0.0, 0.0, [0.0] * len(weights)
    grad = [[0.0] * len(weights) for _ in rows]
    for i, (row, own) in enumerate(zip(rows, positions.tolist())):
        cosines = [
            sum(x * w for x, w in zip(row, column))
            / math.sqrt(sum(x * x for x in row) * sum(w * w for w in column))
            for column in columns
        ]
        starts = range(0, len(columns), subcenters)
        nearest = [max(cosines[start : start + subcenters]) for start in starts]
        others = [
            cosine
            for c, cosine in enumerate(nearest)
            if c != own and visible[i, c] and cosine <= filter_above
        ]
        if not others:
            continue
        quality = sum(x * w for x, w in zip(row, weights)) / root + bias
        error = quality - nearest[own] / (1 + 1e-9 + max(others))
        if abs(error) < term.beta:
            loss += term.weight / count * error**2 / (2 * term.beta)
            by_quality = term.weight / count * error / term.beta
        else:
            loss += term.weight / count * (abs(error) - term.beta / 2)
            by_quality = term.weight / count * math.copysign(1, error)
        by_bias += by_quality
        for d, (x, w) in enumerate(zip(row, weights)):
            by_weights[d] += by_quality * x / root
            grad[i][d] += by_quality * w / root
    unknown = [math.nan] * len(learned)
    return TermReference(*map(_double, (loss, grad, [*by_weights, by_bias], unknown)))


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
