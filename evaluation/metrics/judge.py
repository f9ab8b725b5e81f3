"""All that is said of a set of scored pairs: figures with intervals, curves, groups, the hardest.

Thresholds: the accuracy in folds judges each pair by a threshold chosen without it. EER, TAR at a
FAR, FNMR at an FMR and the best accuracy choose theirs on the very pairs that they judge; the
settings say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics import limits
from evaluation.metrics.discard import Discard
from evaluation.metrics.folds import Folds
from evaluation.metrics.groups import judge_groups
from evaluation.metrics.held_out import held_out_shares, thresholds_at
from evaluation.metrics.intervals import LEVEL
from evaluation.metrics.measure import Comparisons, Plan, measure
from evaluation.metrics.roc import check_scores
from evaluation.result import Curve, Figure, Group, HardPair
from facestream import UserError

FAR_LIMITS = (1e-2, 1e-3)
FURTHER_LIMITS = (1e-4, 1e-5, 1e-6)  # where a set has the impostors to show them
COMMON = 1e-3  # FMR of the threshold for groups and discards: a part must be able to show it, too
HARDEST = 24
BIN_EDGES = np.linspace(-1, 1, 101)
ORIGIN = "chosen on these very pairs, but for figures in folds and the accuracy"
METHOD = "bootstrap over clusters, corrected for pairs; mean of percentiles and log-odds intervals"
IMAGES = "images, as the set does not say who they show; over people, intervals may be wider"


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
    far_limits: Sequence[float] | None = None,
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
        far_limits: rates in (0, 1) at which TAR, FNMR and thresholds are given; None for 1e-2,
            1e-3 and what smaller powers of ten the set can show.
        groups: (N,) of strings, the group of each image, "" for none.
        quality: by name, (N,) values of the images, greater for better: a curve of FNMR over the
            share discarded for each.

    Raises:
        UserError: pairs of one kind only, scores that are not finite, folds that cannot be made,
            or a group without genuine pairs.
    """
    check_scores(scores, same)
    pairs = Comparisons(scores, same, first, second, people)
    parts = _folds(pairs, folds=folds, identity_disjoint=identity_disjoint)
    if far_limits is None:
        far_limits = (*FAR_LIMITS, *_shown(same, FURTHER_LIMITS))
    common = _common_threshold(pairs, far_limits)
    quality = quality or {}
    plan = Plan(
        folds=parts,
        draws=draws,
        seed=seed,
        far_limits=far_limits,
        shares=held_out_shares(scores, same, parts, _shown(same, far_limits)) if parts else {},
        discards=_discards(pairs, common[1], quality),
    )
    by_group: Mapping[str, Group] = {}
    if groups is not None:
        by_group = judge_groups(
            pairs,
            groups,
            threshold=common[1],
            folds=folds,
            draws=draws,
            seed=seed,
            far_limits=far_limits,
        )
    found = measure(pairs, plan)
    return Judgement(
        settings=_settings(pairs, parts, folds, common=common, groups=groups, quality=quality),
        counts=pairs.counts,
        figures=found.figures,
        curves=found.curves | _histograms(scores, same),
        interval=_interval(pairs, draws, seed) if draws else {},
        groups=by_group,
        hardest=_hardest(pairs, names),
    )


def _folds(pairs: Comparisons, *, folds: int, identity_disjoint: bool) -> Folds | None:
    if folds == 0:
        return None
    if not identity_disjoint:
        return Folds.contiguous(len(pairs.same), folds)
    assert pairs.people is not None, "identity-disjoint folds need people"
    return Folds.of_people(pairs.people[pairs.first], pairs.people[pairs.second], folds)


def _shown(same: np.ndarray, far_limits: Sequence[float]) -> list[float]:
    impostors = int((~same).sum())
    return [limit for limit in far_limits if limits.can_show(limit, impostors)]


def _common_threshold(pairs: Comparisons, far_limits: Sequence[float]) -> tuple[float, float]:
    """The limit nearest above COMMON that the set can show, and its threshold on all pairs."""
    shown = [limit for limit in _shown(pairs.same, far_limits) if limit >= COMMON]
    far = min(shown, default=max(far_limits))
    return far, thresholds_at(pairs.scores, pairs.same, [far])[0]


def _settings(
    pairs: Comparisons,
    parts: Folds | None,
    folds: int,
    *,
    common: tuple[float, float],
    groups: np.ndarray | None,
    quality: Iterable[str],
) -> dict[str, Any]:
    settings: dict[str, Any] = {"threshold": ORIGIN}
    if parts:
        settings["folds"] = folds
        settings["folds are"] = "identity-disjoint" if parts.identity_disjoint else "contiguous"
        settings["pairs that choose a fold's threshold"] = f"{parts.choosing:,} or more"
    if quality:
        settings["discarded by"] = f"{', '.join(quality)}: the lower of a pair's two images"
    if quality or groups is not None:
        far, threshold = common
        settings["common threshold"] = f"{threshold:.4f}, of FMR {far:g} on the whole set"
    if groups is not None:
        first, second = groups[pairs.first], groups[pairs.second]
        within = int(((first == second) & (first != "")).sum())
        settings["pairs of two groups, or of none"] = len(first) - within
    return settings


def _discards(
    pairs: Comparisons, threshold: float, quality: Mapping[str, np.ndarray]
) -> dict[str, Discard]:
    """The first is "discard"; others name their quality."""
    discards = {}
    for name, values in quality.items():
        of_pairs = np.minimum(values[pairs.first], values[pairs.second])
        if broken := int((~np.isfinite(of_pairs)).sum()):
            raise UserError(
                f"quality {name!r}: {broken} of {len(of_pairs)} pairs have an image whose value "
                "is not finite; expected a number for every image"
            )
        curve = f"discard by {name}" if discards else "discard"
        discards[curve] = Discard(of_pairs, pairs.same, pairs.scores >= threshold)
    return discards


def _interval(pairs: Comparisons, draws: int, seed: int) -> dict[str, Any]:
    return {
        "method": METHOD,
        "clusters": pairs.clusters.kind if pairs.people is not None else IMAGES,
        "number of clusters": pairs.clusters.count,
        "draws": draws,
        "level": LEVEL,
        "seed": seed,
    }


def _histograms(scores: np.ndarray, same: np.ndarray) -> dict[str, Curve]:
    centers = ((BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2).tolist()
    return {
        name: Curve(centers, np.histogram(scores[kind].clip(-1, 1), BIN_EDGES)[0].tolist())
        for name, kind in (("genuine", same), ("impostor", ~same))
    }


def _hardest(pairs: Comparisons, names: Sequence[str] | None) -> dict[str, list[HardPair]]:
    """The impostor pairs of highest score and the genuine pairs of lowest."""

    def name(image: int) -> str:
        return str(image) if names is None else names[image]

    def listed(kind: np.ndarray, badness: np.ndarray) -> list[HardPair]:
        places = np.flatnonzero(kind)
        if len(places) > HARDEST:  # sorting millions for two dozen would take seconds
            places = places[np.argpartition(-badness[places], HARDEST)[:HARDEST]]
        places = places[np.argsort(-badness[places], kind="stable")]
        return [
            HardPair(float(pairs.scores[i]), name(pairs.first[i]), name(pairs.second[i]))
            for i in places
        ]

    return {
        "false accepts": listed(~pairs.same, pairs.scores),
        "false rejects": listed(pairs.same, -pairs.scores),
    }
