"""Which curves are drawn and how they are scaled; svg.py and picture.py put them on paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from evaluation.metrics.limits import below
from evaluation.report.axis import Axis, log_axis, share_axis
from evaluation.report.figure_text import plain
from evaluation.result import Curve, Result

_SCORES_SHOWN = 0.0005  # of the pairs of a kind may lie beyond each end of the histogram's axis


@dataclass(frozen=True)
class Line:
    """A curve of one model, or the outline of one kind of scores.

    Attributes:
        name: whose it is.
        series: which of the colors; the model's place among those compared.
        points: (x, y), finite, in order.
        band: (x, low, high), or empty.
        filled: whether it encloses an area over the x axis.
    """

    name: str
    series: int | str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    filled: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture of curves.

    Attributes:
        kind: "roc", "det", "discard", "cmc", "fnir" or "scores".
        title, about: what it is called, and what it shows in a sentence.
        x, y: its axes.
        lines: in the order to draw.
        unshown: below this x the set shows nothing: fewer than three errors would be expected.
        marks: places on the x axis, with what they are.
    """

    kind: str
    title: str
    about: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    unshown: float | None = None
    marks: Sequence[tuple[float, str]] = ()


def roc(results: Sequence[Result], series: Mapping[str, int]) -> Chart | None:
    """True against false accept rate, the latter logarithmic; None where no result has it.

    Args:
        results: of one set.
        series: each model's color.
    """
    lines = _lines("roc", results, series)
    if not lines:
        return None
    rates = [x for line in lines for x, _ in line.points]
    x = log_axis("false accept rate", rates, to_one=True)
    lowest = [
        low
        for line in lines
        for at, low in [*line.points, *((at, low) for at, low, _ in line.band)]
        if at >= x.low
    ]
    return Chart(
        kind="roc",
        title="ROC",
        about="True accept rate at each false accept rate; the higher, the better.",
        x=x,
        y=share_axis("true accept rate", lowest, to_one=True),
        lines=lines,
        unshown=_unshown(results),
    )


def det(results: Sequence[Result], series: Mapping[str, int]) -> Chart | None:
    """False non-match against false match rate, both logarithmic; None where no result has it."""
    # Where no error is left a logarithmic axis has no place for the line, and it ends.
    lines = [
        replace(line, points=points)
        for line in _lines("det", results, series)
        if (points := [point for point in line.points if point[1] > 0])
    ]
    if not lines:
        return None
    points = [point for line in lines for point in line.points]
    x = log_axis("false match rate", [at for at, _ in points], to_one=True)
    return Chart(
        kind="det",
        title="DET",
        about="False non-match rate at each false match rate; the lower, the better.",
        x=x,
        y=log_axis("false non-match rate", [y for at, y in points if at >= x.low], to_one=False),
        lines=lines,
        unshown=_unshown(results),
    )


def discards(results: Sequence[Result], series: Mapping[str, int]) -> list[Chart]:
    """Errors left when the images of lowest quality are discarded, a chart a kind of quality.

    The curves are "discard" and "discard by" what else is taken for quality.
    """
    kinds = dict.fromkeys(kind for result in results for kind in result.curves)
    charts = [_discard(kind, results, series) for kind in kinds if kind.startswith("discard")]
    return [chart for chart in charts if chart]


def cmc(results: Sequence[Result], series: Mapping[str, int]) -> Chart | None:
    """How often the right identity is among the first so many; None where no result has it."""
    lines = _lines("cmc", results, series)
    if not lines:
        return None
    ranks = [x for line in lines for x, _ in line.points]
    rates = [y for line in lines for _, y in line.points]
    return Chart(
        kind="cmc",
        title="CMC",
        about="Share of searches whose right identity is among the first so many; the higher, "
        "the better.",
        x=Axis("rank", min(ranks), max(max(ranks), min(ranks) + 1), whole=True),
        y=share_axis("identification rate", rates, to_one=True),
        lines=lines,
    )


def fnir(results: Sequence[Result], series: Mapping[str, int]) -> Chart | None:
    """People who are missed against strangers who are taken for somebody; None without such."""
    lines = _lines("fnir", results, series)
    if not lines:
        return None
    return Chart(
        kind="fnir",
        title="FNIR over FPIR",
        about="Share of searches that miss the person, at each share of searches for people who "
        "are not in the gallery that are answered; the lower, the better.",
        x=log_axis("FPIR", [x for line in lines for x, _ in line.points], to_one=True),
        y=share_axis("FNIR", [high for line in lines for high in _tops(line)], to_one=False),
        lines=lines,
    )


def scores(result: Result) -> Chart | None:
    """How the cosines of genuine and of impostor pairs spread; None where there is no histogram.

    Each kind is scaled to its own number of pairs, as impostors may be thousands of times more.
    """
    shapes = []
    for kind in ("impostor", "genuine"):
        points = _points(result.curves[kind]) if kind in result.curves else []
        total = sum(y for _, y in points)
        if total > 0:
            shapes.append(Line(kind, kind, [(x, y / total) for x, y in points], filled=True))
    if not shapes:
        return None
    ends = [end for line in shapes for end in _bulk(line.points)]
    low, high = min(ends), max(ends)
    threshold = result.figures.get("threshold")
    marks = []
    if threshold and threshold.value is not None and low <= threshold.value <= high:
        marks = [(threshold.value, f"threshold {threshold.value:.2f}")]
    return Chart(
        kind="scores",
        title=plain(result.model),
        about="Share of the genuine and of the impostor pairs at each cosine.",
        x=Axis("cosine", low, high if high > low else low + 0.1),
        y=share_axis(
            "share of pairs",
            [1.1 * y for line in shapes for _, y in line.points],  # room for the names above
            to_one=False,
        ),
        lines=shapes,
        marks=marks,
    )


def _discard(kind: str, results: Sequence[Result], series: Mapping[str, int]) -> Chart | None:
    lines = _lines(kind, results, series)
    if not lines:
        return None
    errors = [high for line in lines for high in _tops(line)]
    return Chart(
        kind="discard",
        title=plain(f"Error versus {kind}"),
        about="Errors that are left when the pairs of lowest quality are discarded; a quality "
        "that says something lets the curve fall.",
        x=share_axis(
            "share discarded", [x for line in lines for x, _ in line.points], to_one=False
        ),
        y=share_axis("false non-match rate", errors, to_one=False),
        lines=lines,
    )


def _lines(kind: str, results: Iterable[Result], series: Mapping[str, int]) -> list[Line]:
    lines = []
    for result in results:
        curve = result.curves.get(kind)
        points = _points(curve) if curve else []
        if points:
            name = plain(result.model)
            lines.append(Line(name, series.get(result.model, 0), points, _band(curve)))
    return lines


def _points(curve: Curve) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(curve.x, curve.y) if _finite(x, y)]


def _band(curve: Curve) -> list[tuple[float, float, float]]:
    if not len(curve.low) == len(curve.high) == len(curve.x):
        return []
    return [
        (float(x), float(low), float(high))
        for x, low, high in zip(curve.x, curve.low, curve.high)
        if _finite(x, low, high)
    ]


def _finite(*numbers: float | None) -> bool:
    return all(number is not None and math.isfinite(number) for number in numbers)


def _tops(line: Line) -> list[float]:
    return [high for _, _, high in line.band] or [y for _, y in line.points]


def _bulk(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The x between which all points but a vanishing share lie, one step beyond at each side."""
    step = points[1][0] - points[0][0] if len(points) > 1 else 0.1
    sums, total = [], 0.0
    for x, y in points:
        total += y
        sums.append((x, total))
    first = next(x for x, part in sums if part > _SCORES_SHOWN)
    last = next(x for x, part in sums if part >= total - _SCORES_SHOWN)
    return first - step, last + step


def _unshown(results: Iterable[Result]) -> float | None:
    """The rate that as many impostor pairs would still allow if none of them had been wrong."""
    counts = [count for result in results if (count := result.counts.get("impostor"))]
    return below(max(counts)) if counts else None
