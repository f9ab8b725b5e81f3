"""All that is said of searches in one gallery or several: figures with intervals, curves, groups.

Intervals are of a bootstrap over people: in a draw a search counts as often as the person of its
probe is drawn. The galleries stay as they are: what is said holds for a gallery of their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics import limits
from evaluation.metrics.bootstrap import WORD, Clusters, bootstrap
from evaluation.metrics.identification import (
    fnir,
    mean_precision,
    rank_rates,
    rates_at,
    threshold,
)
from evaluation.metrics.intervals import LEVEL, Spread, figure
from evaluation.metrics.paired import pairwise
from evaluation.metrics.searches import Searches
from evaluation.result import Comparison, Curve, Figure, Group

METHOD = "bootstrap of the searches by person; the galleries stay as they are"
_CMC = 50  # ranks of the curve
_FPIR_POINTS = 50  # of the curve of FNIR
_CURVES = ("cmc", "fnir")
_TOGETHER = 1 << 23  # weights held at a time


@dataclass(frozen=True)
class Wanted:
    """Which figures.

    Attributes:
        ranks: of the CMC, at most 50.
        fpir_limits: at which FNIR is wanted.
        fnir_ranks: how many first candidates count for FNIR.
        precision: whether mAP is wanted.
    """

    ranks: Sequence[int]
    fpir_limits: Sequence[float] = (0.01, 0.1)
    fnir_ranks: Sequence[int] = (1,)
    precision: bool = False


@dataclass(frozen=True)
class Judgement:
    """Parts of a `Result`."""

    figures: Mapping[str, Figure]
    curves: Mapping[str, Curve]
    interval: Mapping[str, Any]
    groups: Mapping[str, Group]


def judge_searches(
    galleries: Mapping[str, Searches],
    *,
    people: np.ndarray,
    wanted: Wanted,
    draws: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Judgement:
    """Judge the searches for the same Q probes in each gallery.

    Args:
        galleries: by name; figures are the mean over them, and of several those of each.
        people: (Q,) int64, whom each probe shows.
        draws: of the bootstrap; 0 gives no intervals.
        groups: (Q,) of strings, the group of each probe, "" for none; None for no groups.
    """
    clusters = Clusters.of_searches(people)
    point = _values(galleries, wanted, np.ones((1, len(people))))
    spreads = _spreads(galleries, people, wanted, draws, seed) if draws else {}
    return Judgement(
        _figures(galleries, wanted, point, spreads, clusters),
        _curves(galleries, wanted, point, spreads),
        _interval(clusters, draws, seed) if draws else {},
        _by_group(galleries, people, wanted, draws, seed, groups),
    )


def compare_searches(
    models: Mapping[str, Mapping[str, Searches]],
    *,
    people: np.ndarray,
    wanted: Wanted,
    draws: int,
    seed: int,
    set_name: str,
) -> list[Comparison]:
    """Every two models by every figure, the mean over the galleries, of the very same searches.

    Args:
        models: by name, what `judge_searches` takes of one.
        people: (Q,) int64, whom each probe shows.
        set_name: whose searches they are.
    """
    once = np.ones((1, len(people)))
    points = {name: _values(galleries, wanted, once) for name, galleries in models.items()}
    spreads = {
        name: _spreads(galleries, people, wanted, draws, seed) for name, galleries in models.items()
    }
    galleries = next(iter(models.values()))
    left_out = {*_CURVES, *_not_shown(galleries, wanted)}
    of_one = _of_one(next(iter(galleries.values())), wanted, once, np.empty(0))
    figures = [name for name in of_one if name not in left_out]
    return pairwise(points, spreads, set_name=set_name, figures=figures)


def _spreads(
    galleries: Mapping[str, Searches], people: np.ndarray, wanted: Wanted, draws: int, seed: int
) -> dict[str, Spread]:
    every = np.arange(len(people))
    return bootstrap(
        lambda weigh: _values(galleries, wanted, weigh(every)),
        Clusters.of_searches(people),
        draws=draws,
        seed=seed,
        at_once=min(WORD, max(1, _TOGETHER // len(people))),
    )


def _values(
    galleries: Mapping[str, Searches], wanted: Wanted, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The figures by name, (draws,), and curves: "cmc", (draws, ranks), "fnir", (draws, points)."""
    fpir = _fpir_points(galleries, wanted)
    of_each = {
        name: _of_one(searches, wanted, weights, fpir) for name, searches in galleries.items()
    }
    names = list(next(iter(of_each.values())))
    values = {name: np.mean([found[name] for found in of_each.values()], axis=0) for name in names}
    if len(of_each) > 1:
        for gallery, found in of_each.items():
            values |= {f"{name}, {gallery}": found[name] for name in names if name not in _CURVES}
    return values


def _of_one(
    searches: Searches, wanted: Wanted, weights: np.ndarray, fpir: np.ndarray
) -> dict[str, np.ndarray]:
    cmc = rank_rates(searches, np.arange(1, _CMC + 1), weights)
    values = {f"rank-{rank}": cmc[:, rank - 1] for rank in wanted.ranks}
    if wanted.precision:
        values["mAP"] = mean_precision(searches, weights)
    curves = {"cmc": cmc}
    for rank in wanted.fnir_ranks:
        points = fpir if rank == 1 else fpir[:0]
        at = np.concatenate([wanted.fpir_limits, points])
        missed = fnir(searches, at, rank=rank, weights=weights)
        for limit, column in zip(wanted.fpir_limits, missed.T):
            values[_fnir_name(rank, limit)] = column
        if len(points):
            curves["fnir"] = missed[:, len(wanted.fpir_limits) :]
    return values | curves


def _fpir_points(galleries: Mapping[str, Searches], wanted: Wanted) -> np.ndarray:
    """The FPIR of the curve's points: those that the searches can show; none where none can."""
    lowest = limits.below(_fewest_unmated(galleries))
    if not wanted.fpir_limits or lowest >= 1:
        return np.empty(0)
    return np.geomspace(lowest, 1, _FPIR_POINTS)


def _fewest_unmated(galleries: Mapping[str, Searches]) -> int:
    return min(int((~searches.mated).sum()) for searches in galleries.values())


def _fnir_name(rank: int, limit: float) -> str:
    return f"fnir@fpir={limit:g}" + (f", rank {rank}" if rank > 1 else "")


def _figures(
    galleries: Mapping[str, Searches],
    wanted: Wanted,
    point: Mapping[str, np.ndarray],
    spreads: Mapping[str, Spread],
    clusters: Clusters,
) -> dict[str, Figure]:
    mated = np.logical_or.reduce([searches.mated for searches in galleries.values()])
    apart = clusters.apart(mated)
    figures = {
        name: figure(value[0], spreads.get(name), rate=True, apart=apart)
        for name, value in point.items()
        if name not in _CURVES
    }
    return figures | _not_shown(galleries, wanted)


def _not_shown(galleries: Mapping[str, Searches], wanted: Wanted) -> dict[str, Figure]:
    """In place of figures that these searches are too few for."""
    fewest = _fewest_unmated(galleries)
    figures = {}
    for limit in wanted.fpir_limits:
        if limits.can_show(limit, fewest):
            continue
        note = (
            f"{fewest:,} searches for people who are not in the gallery cannot show an FPIR of "
            f"{limit:g}"
        )
        for rank in wanted.fnir_ranks:
            name = _fnir_name(rank, limit)
            figures[name] = Figure(None, note=note)
            if len(galleries) > 1:
                figures |= {f"{name}, {gallery}": figures[name] for gallery in galleries}
    return figures


def _curves(
    galleries: Mapping[str, Searches],
    wanted: Wanted,
    point: Mapping[str, np.ndarray],
    spreads: Mapping[str, Spread],
) -> dict[str, Curve]:
    places = {"cmc": range(1, _CMC + 1), "fnir": _fpir_points(galleries, wanted).tolist()}
    return {
        name: _curve(x, point[name][0], spreads.get(name))
        for name, x in places.items()
        if name in point
    }


def _curve(x: Sequence[float], rates: np.ndarray, spread: Spread | None) -> Curve:
    x = list(x)
    if spread is None:
        return Curve(x, rates.tolist())
    # Where every draw has the same rate there is no spread to draw.
    ends = [np.where(np.isnan(end), rates, end.clip(0, 1)) for end in spread.interval(rates)]
    return Curve(x, rates.tolist(), *(end.tolist() for end in ends))


def _interval(clusters: Clusters, draws: int, seed: int) -> dict[str, Any]:
    return {
        "method": METHOD,
        "clusters": "people of the probes",
        "number of clusters": clusters.count,
        "draws": draws,
        "level": LEVEL,
        "seed": seed,
    }


def _by_group(
    galleries: Mapping[str, Searches],
    people: np.ndarray,
    wanted: Wanted,
    draws: int,
    seed: int,
    groups: np.ndarray | None,
) -> dict[str, Group]:
    """Of each group the means over the galleries, and its errors at the threshold of all."""
    found = {}
    for group in [] if groups is None else sorted(set(groups.tolist()) - {""}):
        inside = groups == group
        parts = {name: searches.of(inside) for name, searches in galleries.items()}
        mated = sum(int(part.mated.sum()) for part in parts.values())
        counts = {"probes": int(inside.sum()), "mated": mated}
        if not mated:
            figures = {"rank-1": Figure(None, note="nobody of this group is in a gallery")}
            found[group] = Group(counts, figures)
            continue
        judged = judge_searches(parts, people=people[inside], wanted=wanted, draws=draws, seed=seed)
        of_galleries = tuple(f", {name}" for name in galleries)
        figures = {
            name: one for name, one in judged.figures.items() if not name.endswith(of_galleries)
        }
        for limit in wanted.fpir_limits:
            rates = [
                rates_at(parts[name], threshold(searches, limit))
                for name, searches in galleries.items()
                if limits.can_show(limit, int((~searches.mated).sum()))
            ]
            for name, values in zip(("fpir", "fnir"), zip(*rates)):
                figures[f"{name} at the common threshold of fpir={limit:g}"] = Figure(
                    float(np.mean(values))
                )
        found[group] = Group(counts, figures)
    return found
