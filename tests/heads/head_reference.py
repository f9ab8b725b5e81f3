"""The whole head in scalar loops over Python floats, from the papers' formulas through θ."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from heads.counter import normal
from heads.margins import (
    AdaFace,
    ArcFace,
    Combined,
    CosFace,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    MagFace,
    Margin,
    Softmax,
    SphereFace,
    StepContext,
    UniFace,
)


class Reference(NamedTuple):
    """logits (G, C) after margin, hook and scale, -inf where a class is left out; loss 0-d;
    gradients (G, D) and (C·K, D); state (k,) after the step; gradient (k,) of what the margin
    learns. All float64.
    """

    logits: Tensor
    loss: Tensor
    embedding_grad: Tensor
    center_grad: Tensor
    state: Tensor
    learned_grad: Tensor


class Row(NamedTuple):
    """One sample's target: what heads.margins.Target has of it."""

    cosine: float
    slope: float
    norm_slope: float = 0.0
    penalty: float = 0.0
    penalty_slope: float = 0.0


def first_step(margin: Margin, rows: int, dtype: torch.dtype = torch.float64) -> StepContext:
    """The whole margin, key 0, and the state before any step, of 100 classes."""
    return StepContext(
        factor=torch.ones((), dtype=dtype),
        state=torch.tensor(margin.initial_state(), dtype=dtype),
        key=torch.zeros((), dtype=torch.int64),
        index=torch.arange(rows),
        learned=torch.tensor(margin.initial_learned(100), dtype=dtype),
    )


def scalar_targets(
    margin: Margin, cosines: list[float], norms: list[float], context: StepContext
) -> tuple[list[Row], list[float]]:
    """Every sample's target, and the margin's state after the step.

    Exact slopes need cosines off ±1.
    """
    factor = float(context.factor)
    cosines = [min(1.0, max(-1.0, cosine)) for cosine in cosines]
    state = next_state(margin, cosines, norms, context)
    match margin:
        case Softmax():
            rows = [Row(cosine, 1.0) for cosine in cosines]
        case CosFace() | UniFace():
            rows = [Row(cosine - margin.margin * factor, 1.0) for cosine in cosines]
        case ArcFace(easy_margin=True):
            rows = [
                _rotated(cosine, margin.margin * factor)
                if math.acos(cosine) < math.pi / 2
                else Row(cosine, 1.0)
                for cosine in cosines
            ]
        case ArcFace() | CurricularFace():
            rows = [_rotated(cosine, margin.margin * factor) for cosine in cosines]
        case SphereFace():
            rows = [_stretched(cosine, 1 + (margin.margin - 1) * factor, 0.0) for cosine in cosines]
        case Combined():
            rows = []
            for cosine in cosines:
                row = _stretched(cosine, 1 + (margin.m1 - 1) * factor, margin.m2 * factor)
                rows.append(row._replace(cosine=row.cosine - margin.m3 * factor))
        case ElasticArcFace():
            drawn = elastic_margins(margin, cosines, context, math.pi / 2, (0.05, 0.0175))
            rows = [_rotated(cosine, m * factor) for cosine, m in zip(cosines, drawn)]
        case ElasticCosFace():
            drawn = elastic_margins(margin, cosines, context, 1.0, (0.05, 0.02))
            rows = [Row(cosine - m * factor, 1.0) for cosine, m in zip(cosines, drawn)]
        case AdaFace():
            rows = []
            for cosine, norm in zip(cosines, norms):
                norm = min(100.0, max(0.001, norm))
                quality = (norm - state[0]) / (state[1] + 0.001) * margin.h
                quality = min(1.0, max(-1.0, quality))
                row = _rotated(cosine, -margin.margin * factor * quality)
                added = margin.margin * factor * (1 + quality)
                rows.append(row._replace(cosine=row.cosine - added))
        case MagFace():
            rows = [_magface(margin, *pair, factor) for pair in zip(cosines, norms)]
        case _:
            raise TypeError(f"no scalar form of {margin}")
    if margin.gradient == "straight_through":
        rows = [row._replace(slope=1.0) for row in rows]
    return rows, state


def next_state(
    margin: Margin, cosines: list[float], norms: list[float], context: StepContext
) -> list[float]:
    """The running values after the step, from clamped cosines."""
    before = context.state.tolist()
    if isinstance(margin, CurricularFace):
        return [0.01 * sum(cosines) / len(cosines) + 0.99 * before[0]]
    if isinstance(margin, AdaFace):
        held = [min(100.0, max(0.001, norm)) for norm in norms]
        mean = sum(held) / len(held)
        std = before[1]
        if len(held) > 1:
            std = math.sqrt(sum((norm - mean) ** 2 for norm in held) / (len(held) - 1))
        weight = margin.t_alpha
        return [weight * new + (1 - weight) * old for new, old in zip((mean, std), before)]
    return before


def elastic_margins(
    margin: ElasticArcFace | ElasticCosFace,
    cosines: list[float],
    context: StepContext,
    largest: float,
    paper_stds: tuple[float, float],
) -> list[float]:
    """Each sample's draw. The draws are heads.counter's: a fact given to both sides."""
    std = paper_stds[margin.plus] if margin.std is None else margin.std
    draws = normal(context.key, context.index, torch.float64).tolist()
    margins = [min(largest, max(0.0, margin.margin + std * draw)) for draw in draws]
    if margin.plus:
        # A sample with n smaller cosines gets the draw with n larger ones.
        margins.sort(reverse=True)
        margins = [margins[sum(other < cosine for other in cosines)] for cosine in cosines]
    return margins


def _rotated(cosine: float, angle: float) -> Row:
    theta = math.acos(cosine)
    if theta + angle > math.pi:
        return Row(cosine - angle * math.sin(angle), 1.0)
    if theta + angle < 0:
        return Row(1.0, 0.0)
    return Row(math.cos(theta + angle), math.sin(theta + angle) / math.sin(theta))


def _stretched(cosine: float, multiplier: float, shift: float) -> Row:
    theta = math.acos(cosine)
    turns, rest = divmod(multiplier * theta + shift, math.pi)
    return Row(math.cos(rest) - 2 * turns, multiplier * math.sin(rest) / math.sin(theta))


def _magface(margin: MagFace, cosine: float, norm: float, factor: float) -> Row:
    theta = math.acos(cosine)
    held = min(margin.u_a, max(margin.l_a, norm))
    share = (held - margin.l_a) / (margin.u_a - margin.l_a)
    angle = factor * ((1 - share) * margin.l_margin + share * margin.u_margin)
    if margin.easy_margin and theta >= math.pi / 2:
        row, by_angle = Row(cosine, 1.0), 0.0
    elif theta + angle > math.pi:
        row = Row(cosine - angle * math.sin(angle), 1.0)
        by_angle = -math.sin(angle) - angle * math.cos(angle)
    else:
        row, by_angle = _rotated(cosine, angle), -math.sin(theta + angle)
    row = row._replace(penalty=margin.lambda_g * (held / margin.u_a**2 + 1 / held))
    if norm != held:
        return row
    by_norm = factor * (margin.u_margin - margin.l_margin) / (margin.u_a - margin.l_a)
    return row._replace(
        norm_slope=by_angle * by_norm,
        penalty_slope=margin.lambda_g * (1 / margin.u_a**2 - 1 / held**2),
    )


def scalar_negative(
    margin: Margin, cosine: float, target_cosine: float, factor: float, state: list[float]
) -> tuple[float, float]:
    """A negative's cosine after the hook, and its slope."""
    if margin.filter_above is not None and cosine > margin.filter_above:
        return -math.inf, 0.0
    if isinstance(margin, CurricularFace):
        theta = math.acos(min(1.0, max(-1.0, target_cosine)))
        if cosine > math.cos(theta + margin.margin * factor):
            return cosine * (state[0] + cosine), state[0] + 2 * cosine
    return cosine, 1.0


def scalar_head(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    *,
    margin: Margin,
    context: StepContext | None = None,
    subcenters: int = 1,
    visible: Tensor | None = None,
) -> Reference:
    """Mean loss of the margined cosines, and its gradients, one scalar at a time.

    embeddings: (G, D).
    centers: (C·K, D), a class's K = `subcenters` rows together; its cosine is the largest of
        theirs, and the first row that has it gets the gradient.
    labels: (G,) int64 in [0, C).
    context: None for `first_step`.
    visible: (G, C) bool, the negatives each sample sees; its own class it always sees.
    """
    context = context or first_step(margin, len(labels))
    rows, columns = embeddings.double().tolist(), centers.double().tolist()
    seen = None if visible is None else visible.tolist()
    lengths = [math.sqrt(sum(x * x for x in row)) for row in rows]
    widths = [math.sqrt(sum(w * w for w in column)) for column in columns]

    nearest, cosines = [], []  # of every sample, for every class
    for row, length in zip(rows, lengths):
        each = [
            sum(x * w for x, w in zip(row, column)) / (length * width)
            for column, width in zip(columns, widths)
        ]
        starts = range(0, len(columns), subcenters)
        nearest.append(
            [max(range(start, start + subcenters), key=each.__getitem__) for start in starts]
        )
        cosines.append([each[j] for j in nearest[-1]])

    own = [row[label] for row, label in zip(cosines, labels.tolist())]
    targets, state = scalar_targets(margin, own, lengths, context)

    loss = 0.0
    all_logits = []
    learned_grad = [0.0] * len(context.learned)
    embedding_grad = [[0.0] * len(row) for row in rows]
    center_grad = [[0.0] * len(column) for column in columns]
    for i, (row, label, target) in enumerate(zip(rows, labels.tolist(), targets)):
        bent, slopes = [], []
        for c, cosine in enumerate(cosines[i]):
            if c == label:
                value, slope = target.cosine, target.slope
            elif seen is not None and not seen[i][c]:
                value, slope = -math.inf, 0.0
            else:
                value, slope = scalar_negative(margin, cosine, own[i], float(context.factor), state)
            bent.append(value)
            slopes.append(slope)
        logits = [margin.scale * value for value in bent]
        all_logits.append(logits)
        if isinstance(margin, UniFace):
            row_loss, by_logits = _judged(margin, logits, label, float(context.learned))
            learned_grad[0] -= sum(by_logits) / len(rows)  # it is subtracted from every logit
        else:
            row_loss, by_logits = _cross_entropy(logits, label)
        loss += (row_loss + target.penalty) / len(rows)

        unit_row = [x / lengths[i] for x in row]
        for c, cosine in enumerate(cosines[i]):
            by_bent = by_logits[c] * margin.scale / len(rows)
            if c == label:
                by_norm = by_bent * target.norm_slope + target.penalty_slope / len(rows)
                for d, unit_x in enumerate(unit_row):
                    embedding_grad[i][d] += by_norm * unit_x
            j = nearest[i][c]
            for d, (unit_x, w) in enumerate(zip(unit_row, columns[j])):
                unit_w, by_cosine = w / widths[j], by_bent * slopes[c]
                embedding_grad[i][d] += by_cosine * (unit_w - cosine * unit_x) / lengths[i]
                center_grad[j][d] += by_cosine * (unit_x - cosine * unit_w) / widths[j]
    double = torch.float64
    return Reference(
        torch.tensor(all_logits, dtype=double),
        torch.tensor(loss, dtype=double),
        torch.tensor(embedding_grad, dtype=double),
        torch.tensor(center_grad, dtype=double),
        torch.tensor(state, dtype=double),
        torch.tensor(learned_grad, dtype=double),
    )


def _cross_entropy(logits: list[float], label: int) -> tuple[float, list[float]]:
    """A row's loss, and its derivatives by the logits."""
    highest = max(logits)
    log_partition = highest + math.log(sum(math.exp(logit - highest) for logit in logits))
    shares = [math.exp(logit - log_partition) - (c == label) for c, logit in enumerate(logits)]
    return log_partition - logits[label], shares


def _judged(
    margin: UniFace, logits: list[float], label: int, threshold: float
) -> tuple[float, list[float]]:
    """The same of UniFace: every class is a question of yes or no."""
    loss, shares = 0.0, []
    for c, logit in enumerate(logits):
        way, weight = (-1, 1.0) if c == label else (1, margin.negative_weight)
        against = way * (logit - threshold)
        loss += weight * math.log1p(math.exp(against))
        shares.append(weight * way / (1 + math.exp(-against)) if against > -700 else 0.0)
    return loss, shares
