"""All that is told of a set of scored pairs: figures with intervals, curves, groups, the hardest.

Thresholds: the accuracy in folds judges each pair by a threshold chosen without it. EER, TAR at a
FAR, FNMR at an FMR and the best accuracy choose theirs on the very pairs that they judge; the
settings say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics import limits
from evaluation.metrics.folds import Folds
from evaluation.metrics.scored import ScoredPairs
from evaluation.result import Curve, Figure, Group, HardPair

FAR_LIMITS = (1e-2, 1e-3)
HARDEST = 24
BIN_EDGES = np.linspace(-1, 1, 101)
ORIGIN = "chosen on these very pairs, but for the accuracy in folds"


@dataclass(frozen=True)
class Judgement:
    """What `judge_pairs` finds, in the parts that a `Result` is made of.

    Attributes:
        settings: the folds and the thresholds' origin: to be merged into `Result.settings`.
        counts: "genuine", "impostor", and "identities" where they are known.
        figures, curves, interval, groups, hardest: as `Result` has them.
    """

    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    figures: Mapping[str, Figure]
    curves: Mapping[str, Curve]
    interval: Mapping[str, Any]
    groups: Mapping[str, Group]
    hardest: Mapping[str, Sequence[HardPair]]


def judge_pairs(
    scores: np.ndarray,
    same: np.ndarray,
    *,
    first: np.ndarray,
    second: np.ndarray,
    people: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    folds: int = 10,
    identity_disjoint: bool = False,
    draws: int = 1000,
    seed: int = 0,
    far_limits: Sequence[float] = FAR_LIMITS,
    groups: np.ndarray | None = None,
    quality: Mapping[str, np.ndarray] | None = None,
) -> Judgement:
    """Judge P scored pairs of N images.

    Args:
        scores: (P,) cosines in [-1, 1].
        same: (P,) bool, whether a pair shows one person.
        first, second: (P,) integers below N: a pair's images. One image, one number: where people
            are not known, images are what is drawn.
        people: (N,) integers, whom an image shows; None where that is not known.
        names: (N,) of the images, for the hardest pairs; None names them by number.
        folds: for the accuracy; 0 leaves it out.
        identity_disjoint: folds of people instead of contiguous parts; needs `people`.
        draws: of the bootstrap; 0 gives no intervals, and is fast.
        far_limits: rates in (0, 1) at which TAR, FNMR and thresholds are given.
        groups: (N,) of strings, the group of each image, "" for none.
        quality: by name, (N,) values of the images, greater for better: a curve of FNMR over the
            share discarded for each.

    Raises:
        UserError: pairs of one kind only, scores that are not finite, folds that cannot be made,
            or a group without genuine pairs.
    """
    parts = _folds(first, second, people, folds=folds, identity_disjoint=identity_disjoint)
    pairs = ScoredPairs(scores, same, far_limits=far_limits, folds=parts)
    point = pairs.figures()
    return Judgement(
        settings={
            "folds": folds,
            "folds are": "identity-disjoint" if identity_disjoint else "contiguous",
            "threshold": ORIGIN,
        },
        counts=_counts(same, first, second, people),
        figures=_figures(point, pairs),
        curves=_curves(point, pairs),
        interval={},
        groups={},
        hardest=_hardest(pairs, first, second, names),
    )


def _folds(
    first: np.ndarray,
    second: np.ndarray,
    people: np.ndarray | None,
    *,
    folds: int,
    identity_disjoint: bool,
) -> Folds | None:
    if folds == 0:
        return None
    if not identity_disjoint:
        return Folds.contiguous(len(first), folds)
    assert people is not None, "identity-disjoint folds need people"
    return Folds.of_people(people[first], people[second], folds)


def _counts(
    same: np.ndarray, first: np.ndarray, second: np.ndarray, people: np.ndarray | None
) -> dict[str, int]:
    counts = {"genuine": int(same.sum()), "impostor": int((~same).sum())}
    if people is not None:
        counts["identities"] = len(np.unique(people[np.r_[first, second]]))
    return counts


def _figures(point: Mapping[str, np.ndarray], pairs: ScoredPairs) -> dict[str, Figure]:
    figures = {
        name: Figure(float(value[0]) if np.isfinite(value[0]) else None)
        for name, value in point.items()
        if name != "roc"
    }
    impostors = int((~pairs.same).sum())
    for limit in pairs.far_limits:
        if not limits.can_show(limit, impostors):
            for name in ("tar@far", "fnmr@fmr", "threshold@fmr"):
                figures[f"{name}={limit:g}"] = Figure(
                    None, note=limits.cannot_show(limit, impostors)
                )
    return figures


def _curves(point: Mapping[str, np.ndarray], pairs: ScoredPairs) -> dict[str, Curve]:
    tar = point["roc"][0]
    centers = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2
    curves = {
        "roc": Curve(pairs.roc_far.tolist(), tar.tolist()),
        "det": Curve(pairs.roc_far.tolist(), (1 - tar).tolist()),
    }
    for name, kind in (("genuine", pairs.same), ("impostor", ~pairs.same)):
        held = np.histogram(pairs.scores[kind].clip(-1, 1), BIN_EDGES)[0]
        curves[name] = Curve(centers.tolist(), held.tolist())
    return curves


def _hardest(
    pairs: ScoredPairs, first: np.ndarray, second: np.ndarray, names: Sequence[str] | None
) -> dict[str, list[HardPair]]:
    """The impostor pairs of highest score and the genuine pairs of lowest."""

    def listed(places: np.ndarray) -> list[HardPair]:
        return [
            HardPair(
                float(pairs.scores[i]),
                *(names[j] if names is not None else str(j) for j in (first[i], second[i])),
            )
            for i in places
        ]

    impostor, genuine = np.flatnonzero(~pairs.same), np.flatnonzero(pairs.same)
    highest = impostor[np.argsort(-pairs.scores[impostor], kind="stable")[:HARDEST]]
    lowest = genuine[np.argsort(pairs.scores[genuine], kind="stable")[:HARDEST]]
    return {"false accepts": listed(highest), "false rejects": listed(lowest)}
