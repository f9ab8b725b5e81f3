"""The whole head in scalar loops over Python floats, from the papers' formulas through θ."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Reference(NamedTuple):
    """logits (G, C) after margin and scale; loss 0-d; gradients (G, D) and (C, D). All float64."""

    logits: Tensor
    loss: Tensor
    embedding_grad: Tensor
    center_grad: Tensor


def scalar_target(name: str, cosine: float, margin: float, gradient: str) -> tuple[float, float]:
    """The margined target cosine and its slope, of one sample."""
    cosine = min(1.0, max(-1.0, cosine))
    if name == "softmax":
        return cosine, 1.0
    if name == "cosface":
        return cosine - margin, 1.0
    theta = math.acos(cosine)
    if theta + margin > math.pi:
        return cosine - margin * math.sin(margin), 1.0
    slope = 1.0 if gradient == "straight_through" else math.sin(theta + margin) / math.sin(theta)
    return math.cos(theta + margin), slope


def scalar_head(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    *,
    name: str,
    margin: float = 0.0,
    scale: float = 64.0,
    gradient: str = "exact",
) -> Reference:
    """Mean cross-entropy of the margined cosines, and its gradients, one scalar at a time."""
    rows, columns = embeddings.double().tolist(), centers.double().tolist()
    lengths = [math.sqrt(sum(x * x for x in row)) for row in rows]
    widths = [math.sqrt(sum(w * w for w in column)) for column in columns]
    loss = 0.0
    all_logits = []
    embedding_grad = [[0.0] * len(row) for row in rows]
    center_grad = [[0.0] * len(column) for column in columns]
    for i, (row, label) in enumerate(zip(rows, labels.tolist())):
        cosines = [
            sum(x * w for x, w in zip(row, column)) / (lengths[i] * widths[j])
            for j, column in enumerate(columns)
        ]
        target, slope = scalar_target(name, cosines[label], margin, gradient)
        logits = [scale * cosine for cosine in cosines]
        logits[label] = scale * target
        all_logits.append(logits)
        highest = max(logits)
        log_partition = highest + math.log(sum(math.exp(logit - highest) for logit in logits))
        loss += (log_partition - logits[label]) / len(rows)
        for j, column in enumerate(columns):
            by_cosine = scale / len(rows) * math.exp(logits[j] - log_partition)
            if j == label:
                by_cosine = (by_cosine - scale / len(rows)) * slope
            for d, (x, w) in enumerate(zip(row, column)):
                unit_x, unit_w = x / lengths[i], w / widths[j]
                embedding_grad[i][d] += by_cosine * (unit_w - cosines[j] * unit_x) / lengths[i]
                center_grad[j][d] += by_cosine * (unit_x - cosines[j] * unit_w) / widths[j]
    double = torch.float64
    return Reference(
        torch.tensor(all_logits, dtype=double),
        torch.tensor(loss, dtype=double),
        torch.tensor(embedding_grad, dtype=double),
        torch.tensor(center_grad, dtype=double),
    )
