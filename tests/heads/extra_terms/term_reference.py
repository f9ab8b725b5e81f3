"""The extra terms in scalar loops over Python floats, from the papers' formulas."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from heads.extra_terms import SampleToSample


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


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
