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
from evaluation.metrics.binned import BinnedPairs
from evaluation.metrics.bootstrap import LEVEL, Clusters, Spread, bootstrap, figure
from evaluation.metrics.folds import Folds
from evaluation.metrics.scored import ScoredPairs
from evaluation.result import Curve, Figure, Group, HardPair

FAR_LIMITS = (1e-2, 1e-3)
SORTED = 1_000_000  # pairs, above which the draws' figures are made over bins
RATES_AT = ("tar@far", "fnmr@fmr")
CURVES = ("roc",)
METHOD = "bootstrap over people, percentiles less a pair's own chance counted too often"
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
    kind = ScoredPairs if len(same) <= SORTED else BinnedPairs
    pairs = kind(scores, same, far_limits=far_limits, folds=parts)
    point = pairs.point()
    clusters = Clusters.of_pairs(first, second, people)
    spreads = {}
    if draws:
        spreads = bootstrap(pairs.figures, clusters, draws=draws, seed=seed, at_once=pairs.at_once)
    return Judgement(
        settings={
            "folds": folds,
            "folds are": "identity-disjoint" if identity_disjoint else "contiguous",
            "threshold": ORIGIN,
        },
        counts=_counts(same, clusters),
        figures=_figures(point, spreads, same, clusters, far_limits),
        curves=_curves(pairs.roc_far, point, spreads, scores, same),
        interval=_interval(clusters, draws, seed) if draws else {},
        groups={},
        hardest=_hardest(scores, same, first, second, names),
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


def _counts(same: np.ndarray, clusters: Clusters) -> dict[str, int]:
    counts = {"genuine": int(same.sum()), "impostor": int((~same).sum())}
    if clusters.kind == "people":
        counts["identities"] = clusters.count
    return counts


def _interval(clusters: Clusters, draws: int, seed: int) -> dict[str, Any]:
    return {
        "method": METHOD,
        "clusters": clusters.kind
        if clusters.kind == "people"
        else "images, since who they show is not known: people would give wider intervals",
        "number of clusters": clusters.count,
        "draws": draws,
        "level": LEVEL,
        "seed": seed,
    }


def _figures(
    point: Mapping[str, np.ndarray],
    spreads: Mapping[str, Spread],
    same: np.ndarray,
    clusters: Clusters,
    far_limits: Sequence[float],
) -> dict[str, Figure]:
    genuine, impostor = clusters.apart(same), clusters.apart(~same)
    apart = {
        "accuracy": genuine + impostor,
        "best accuracy": genuine + impostor,
        "auc": min(genuine, impostor),
        "eer": min(genuine, impostor),
        **{f"{rate}={limit:g}": genuine for rate in RATES_AT for limit in far_limits},
    }
    impostors = int((~same).sum())
    cannot = {
        f"{name}={limit:g}": limits.cannot_show(limit, impostors)
        for name in (*RATES_AT, "threshold@fmr")
        for limit in far_limits
        if not limits.can_show(limit, impostors)
    }
    figures = {}
    for name, value in point.items():
        if name in cannot:
            figures[name] = Figure(None, note=cannot[name])
        elif name not in CURVES:
            spread = None if name == "accuracy_std" else spreads.get(name)
            figures[name] = figure(
                float(value[0]), spread, rate=name in apart, apart=apart.get(name, 0)
            )
    return figures


def _curves(
    far: np.ndarray,
    point: Mapping[str, np.ndarray],
    spreads: Mapping[str, Spread],
    scores: np.ndarray,
    same: np.ndarray,
) -> dict[str, Curve]:
    tar = point["roc"][0]
    low = high = np.empty(0)
    if spreads:
        low, high = spreads["roc"].interval(tar)
        low, high = (np.where(np.isfinite(end), end, tar).clip(0, 1) for end in (low, high))
    curves = {
        "roc": Curve(far.tolist(), tar.tolist(), low.tolist(), high.tolist()),
        "det": Curve(far.tolist(), (1 - tar).tolist(), (1 - high).tolist(), (1 - low).tolist()),
    }
    centers = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2
    for name, kind in (("genuine", same), ("impostor", ~same)):
        held = np.histogram(scores[kind].clip(-1, 1), BIN_EDGES)[0]
        curves[name] = Curve(centers.tolist(), held.tolist())
    return curves


def _hardest(
    scores: np.ndarray,
    same: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    names: Sequence[str] | None,
) -> dict[str, list[HardPair]]:
    """The impostor pairs of highest score and the genuine pairs of lowest."""

    def name(image: int) -> str:
        return str(image) if names is None else names[image]

    def listed(kind: np.ndarray, badness: np.ndarray) -> list[HardPair]:
        places = np.flatnonzero(kind)
        if len(places) > HARDEST:  # sorting millions for two dozen would take seconds
            places = places[np.argpartition(-badness[places], HARDEST)[:HARDEST]]
        places = places[np.argsort(-badness[places], kind="stable")]
        return [HardPair(float(scores[i]), name(first[i]), name(second[i])) for i in places]

    return {"false accepts": listed(~same, scores), "false rejects": listed(same, -scores)}
