"""The figures and curves of a list of scored pairs, or of a part of it, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from evaluation.metrics import limits
from evaluation.metrics.binned import BinnedPairs
from evaluation.metrics.bootstrap import Clusters, Once, Weights, bootstrap
from evaluation.metrics.discard import Discard
from evaluation.metrics.folds import Folds
from evaluation.metrics.intervals import Spread, figure
from evaluation.metrics.scored import ScoredPairs
from evaluation.metrics.shares import Share, weighted_shares
from evaluation.result import Curve, Figure

SORTED = 1_000_000  # pairs, above which the draws' figures are made over bins
ODDS = ("auc",)  # whose interval is symmetric in the logarithm of the odds
RATES_AT = ("tar@far", "fnmr@fmr")


@dataclass(frozen=True)
class Comparisons:
    """P scored pairs of N images.

    Attributes:
        scores: (P,) cosines.
        same: (P,) bool.
        first, second: (P,) integers below N.
        people: (N,) integers, whom an image shows; None where that is not known.
    """

    scores: np.ndarray
    same: np.ndarray
    first: np.ndarray
    second: np.ndarray
    people: np.ndarray | None

    @cached_property
    def clusters(self) -> Clusters:
        return Clusters.of_pairs(self.first, self.second, self.people)

    @property
    def counts(self) -> dict[str, int]:
        """ "genuine", "impostor", and "identities" where they are known."""
        counts = {"genuine": int(self.same.sum()), "impostor": int((~self.same).sum())}
        return counts | ({} if self.people is None else {"identities": self.clusters.count})

    def within(self, chosen: np.ndarray) -> Comparisons:
        """Those of a mask (P,)."""
        return Comparisons(
            self.scores[chosen],
            self.same[chosen],
            self.first[chosen],
            self.second[chosen],
            self.people,
        )


@dataclass(frozen=True)
class Plan:
    """How pairs are to be measured.

    Attributes:
        folds: for the accuracy; None leaves it out.
        draws: of the bootstrap; 0 gives no intervals.
        seed: of the draws.
        far_limits: rates at which TAR, FNMR and thresholds are given.
        shares: further rates of the pairs, at thresholds that are fixed.
        discards: by the name of their curve.
    """

    folds: Folds | None
    draws: int
    seed: int
    far_limits: Sequence[float]
    shares: Mapping[str, Share] = field(default_factory=dict)
    discards: Mapping[str, Discard] = field(default_factory=dict)

    def cannot_show(self, pairs: Comparisons) -> dict[str, str]:
        """Names of figures at rates that are too small for the number of impostors, and why."""
        impostors = int((~pairs.same).sum())
        return {
            f"{name}={limit:g}": limits.cannot_show(limit, impostors)
            for name in (*RATES_AT, "threshold@fmr")
            for limit in self.far_limits
            if not limits.can_show(limit, impostors)
        }


@dataclass(frozen=True)
class Measured:
    """Figures and curves by name, in the order to show."""

    figures: dict[str, Figure]
    curves: dict[str, Curve]


def scored(pairs: Comparisons, plan: Plan) -> ScoredPairs | BinnedPairs:
    """What gives the figures of the pairs, and of draws of them.

    Raises:
        UserError: pairs of one kind only, or scores that are not finite.
    """
    kind = ScoredPairs if len(pairs.same) <= SORTED else BinnedPairs
    return kind(pairs.scores, pairs.same, far_limits=plan.far_limits, folds=plan.folds)


def measure(pairs: Comparisons, plan: Plan) -> Measured:
    """Every figure that pairs of both kinds have.

    Raises:
        UserError: pairs of one kind only, or scores that are not finite.
    """
    whole = scored(pairs, plan)

    def further(weigh: Weights) -> dict[str, np.ndarray]:
        curves = {name: discard.fnmr(weigh) for name, discard in plan.discards.items()}
        return weighted_shares(plan.shares, weigh) | curves

    point = {name: value[0] for name, value in (whole.point() | further(Once())).items()}
    spreads: Mapping[str, Spread] = {}
    if plan.draws:
        spreads = bootstrap(
            lambda weigh: whole.figures(weigh) | further(weigh),
            pairs.clusters,
            draws=plan.draws,
            seed=plan.seed,
            at_once=whole.at_once,
        )
    roc, low, high = _banded(point, spreads, "roc")
    curves = {
        "roc": _curve(whole.roc_far, roc, low, high),
        "det": _curve(whole.roc_far, 1 - roc, 1 - high, 1 - low),
    } | {
        name: _curve(discard.shares, *_banded(point, spreads, name))
        for name, discard in plan.discards.items()
    }
    return Measured(_figures(pairs, point, spreads, plan), curves)


def measure_shares(pairs: Comparisons, plan: Plan) -> dict[str, Figure]:
    """Only `plan.shares`, which need no pairs of both kinds."""
    spreads: Mapping[str, Spread] = {}
    if plan.draws:
        spreads = bootstrap(
            lambda weigh: weighted_shares(plan.shares, weigh),
            pairs.clusters,
            draws=plan.draws,
            seed=plan.seed,
        )
    return {
        name: _share_figure(pairs, share, spreads.get(name)) for name, share in plan.shares.items()
    }


def _share_figure(pairs: Comparisons, share: Share, spread: Spread | None) -> Figure:
    note = "" if share.counted.any() else "no pair to count"
    apart = pairs.clusters.apart(share.counted)
    return figure(share.point, spread, rate=True, apart=apart, note=note)


def _figures(
    pairs: Comparisons,
    point: Mapping[str, np.ndarray],
    spreads: Mapping[str, Spread],
    plan: Plan,
) -> dict[str, Figure]:
    genuine, impostor = (pairs.clusters.apart(kind) for kind in (pairs.same, ~pairs.same))
    apart = {
        "accuracy": genuine + impostor,
        "best accuracy": genuine + impostor,
        "auc": min(genuine, impostor),
        "eer": min(genuine, impostor),
        **{f"{rate}={limit:g}": genuine for rate in RATES_AT for limit in plan.far_limits},
    }
    cannot = plan.cannot_show(pairs)
    figures = {}
    for name, value in point.items():
        if name in cannot:
            figures[name] = Figure(None, note=cannot[name])
        elif name in plan.shares:
            figures[name] = _share_figure(pairs, plan.shares[name], spreads.get(name))
        elif np.ndim(value) == 0:
            figures[name] = figure(
                float(value),
                # A spread over the folds has its say already.
                None if name == "accuracy_std" else spreads.get(name),
                rate=name in apart,
                odds=name in ODDS,
                apart=apart.get(name, 0),
                note="" if np.isfinite(value) else _undefined(name),
            )
    return figures


def _undefined(name: str) -> str:
    if name.startswith("threshold@"):
        return "no threshold within that FMR accepts any genuine pair"
    return "not defined for scores without spread"


def _banded(
    point: Mapping[str, np.ndarray], spreads: Mapping[str, Spread], name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A curve of rates with low and high, which are empty where there are no draws."""
    rates = point[name]
    if name not in spreads:
        return rates, np.empty(0), np.empty(0)
    ends = spreads[name].interval(rates)
    low, high = (np.where(np.isfinite(end), end, rates).clip(0, 1) for end in ends)
    return rates, low, high


def _curve(x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> Curve:
    return Curve(x.tolist(), y.tolist(), low.tolist(), high.tolist())
