"""A set's part of the page: charts, figures, groups and the pairs that went wrong by most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element

from evaluation.report import charts
from evaluation.report.charts import Chart
from evaluation.report.comparison import of_groups, of_set
from evaluation.report.differences import differences
from evaluation.report.element import element
from evaluation.report.hard_pairs import hard_pairs
from evaluation.report.html_table import html_table
from evaluation.report.svg import key, svg
from evaluation.report.thumbnails import Thumbnails
from evaluation.result import Evaluation, Result

_FEW = 4  # models whose bands may lie over one another


def set_section(
    evaluation: Evaluation,
    name: str,
    *,
    anchor: str,
    series: Mapping[str, int],
    thumbnails: Thumbnails,
) -> Element:
    """The section of the set `name`, to be linked to as `anchor`."""
    results = [result for result in evaluation.results if result.set == name]
    colors = series if len(results) > 1 else {}
    groups = of_groups(evaluation, name)
    return element(
        "section",
        element("a", "↑ Summary", href="#summary", class_="up"),
        element("h2", name),
        element("p", _subtitle(results), class_="subtitle"),
        html_table(of_set(evaluation, name), series=colors),
        *(
            part
            for grid in differences(evaluation, name)
            for part in (element("h3", grid.title), html_table(grid, series=colors))
        ),
        *_charts(results, series, _legend(results, colors)),
        *([element("h3", "Groups"), html_table(groups, series=colors)] if groups else []),
        *hard_pairs(results, thumbnails),
        id=anchor,
        class_="set",
    )


def _subtitle(results: Sequence[Result]) -> str:
    """The protocols, and the counts that hold for every model."""
    protocols = " and ".join(dict.fromkeys(result.protocol for result in results))
    common = [
        f"{count:,} {kind}"
        for kind, count in results[0].counts.items()
        if count and all(result.counts.get(kind) == count for result in results)
    ]
    return " · ".join([protocols, *common])


def _legend(results: Iterable[Result], colors: Mapping[str, int]) -> Element | None:
    entries = [
        element("li", key(colors[result.model]), result.model)
        for result in results
        if result.model in colors
    ]
    return element("ul", *entries, class_="legend") if entries else None


def _charts(
    results: Sequence[Result], series: Mapping[str, int], legend: Element | None
) -> Iterable[Element]:
    drawn = [draw(results, series) for draw in (charts.roc, charts.det, charts.cmc, charts.fnir)]
    curves: list[Chart] = [chart for chart in drawn if chart]
    curves += charts.discards(results, series)
    spreads = [chart for result in results if (chart := charts.scores(result))]
    if len(spreads) == 1:  # beside the others, where it is named by what it shows
        curves.append(replace(spreads.pop(), title="Scores"))
    if curves:
        yield element("h3", "Curves")
        if legend is not None:
            yield legend
        # Three abreast where that leaves no gap; each is drawn at about the size it is shown in.
        abreast = 3 if len(curves) % 3 == 0 else 2
        size = (340, 270) if abreast == 3 else (510, 310)
        yield element(
            "div",
            *(_figure(chart, size, chart.about) for chart in curves),
            class_=f"charts by-{abreast}{' many' if len(results) > _FEW else ''}",
        )
    if spreads:
        yield element("h3", "Scores")
        yield element("p", spreads[0].about, class_="caption")
        yield element(
            "div", *(_figure(chart, (300, 190), "") for chart in spreads), class_="charts by-4"
        )


def _figure(chart: Chart, size: tuple[float, float], about: str) -> Element:
    if chart.unshown is not None and chart.unshown > chart.x.low:
        about += f" Shaded: rates below {chart.unshown:.2g}, for which this set has too few pairs."
    return element(
        "figure",
        element("figcaption", element("b", chart.title), f" {about}" if about else None),
        svg(chart, *size),
    )
