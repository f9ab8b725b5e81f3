"""A set's part of the page: charts, figures, groups and the pairs that went wrong by most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element

from evaluation.report import charts
from evaluation.report.charts import Chart
from evaluation.report.comparison import of_groups, of_set, paired
from evaluation.report.element import element
from evaluation.report.figure_text import plain
from evaluation.report.html_table import html_table
from evaluation.report.svg import key, svg
from evaluation.report.thumbnails import Thumbnails
from evaluation.result import Evaluation, HardPair, Result

_PAIRS_SHOWN = 12  # of a kind and set, shared among the models
_FEWEST_PAIRS = 3  # of a model

_HARD = {
    "false accepts": "False accepts: two people taken for one",
    "false rejects": "False rejects: one person taken for two",
}


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
    tests = paired(evaluation, name)
    groups = of_groups(evaluation, name)
    return element(
        "section",
        element("h2", name),
        element("p", _subtitle(results), class_="subtitle"),
        _legend(results, colors),
        _charts(results, series),
        element("h3", "Figures"),
        html_table(of_set(evaluation, name), series=colors),
        *([element("h3", tests.title), html_table(tests)] if tests else []),
        *([element("h3", "Groups"), html_table(groups, series=colors)] if groups else []),
        *_hardest(results, thumbnails),
        id=anchor,
        class_="set",
    )


def _subtitle(results: Sequence[Result]) -> str:
    """The protocols, and the counts that hold for every model."""
    protocols = " and ".join(dict.fromkeys(result.protocol for result in results))
    common = [
        f"{count:,} {kind}"
        for kind, count in results[0].counts.items()
        if all(result.counts.get(kind) == count for result in results)
    ]
    return " · ".join([protocols, *common])


def _legend(results: Iterable[Result], colors: Mapping[str, int]) -> Element | None:
    entries = [
        element("li", key(colors[result.model]), result.model)
        for result in results
        if result.model in colors
    ]
    return element("ul", *entries, class_="legend") if entries else None


def _charts(results: Sequence[Result], series: Mapping[str, int]) -> Element | None:
    drawn: list[Chart | None] = [
        draw(results, series) for draw in (charts.roc, charts.det, charts.cmc, charts.discard)
    ]
    curves = [_figure(chart) for chart in drawn if chart]
    spreads = [chart for result in results if (chart := charts.scores(result))]
    if len(spreads) == 1:  # beside the others, where it is named by what it shows
        curves.append(_figure(spreads[0], title="Scores"))
        spreads = []
    small = [_figure(chart, small=True) for chart in spreads]
    if not curves and not small:
        return None
    return element(
        "div",
        element("div", *curves, class_="charts") if curves else None,
        element("h3", "Scores") if small else None,
        element("div", *small, class_="charts small") if small else None,
    )


def _figure(chart: Chart, *, title: str | None = None, small: bool = False) -> Element:
    unshown = chart.unshown is not None and chart.unshown > chart.x.low
    about = chart.about
    if unshown:
        about += f" Shaded: rates below {chart.unshown:.2g}, of which this set has too few pairs."
    return element(
        "figure",
        element("figcaption", element("b", title or chart.title), None if small else f" {about}"),
        svg(chart, width=300, height=190) if small else svg(chart),
    )


def _hardest(results: Sequence[Result], thumbnails: Thumbnails) -> Iterable[Element]:
    shown = max(_FEWEST_PAIRS, _PAIRS_SHOWN // len(results))
    for kind in dict.fromkeys(kind for result in results for kind in result.hardest):
        parts = []
        for result in results:
            pairs = list(result.hardest.get(kind, ()))[:shown]
            if pairs and len(results) > 1:
                parts.append(element("h4", result.model))
            if pairs:
                parts.append(_pairs(result, pairs, thumbnails))
        if parts:
            yield element("h3", _HARD.get(kind, plain(kind).capitalize()))
            yield from parts


def _pairs(result: Result, pairs: Iterable[HardPair], thumbnails: Thumbnails) -> Element:
    return element(
        "ul",
        *(
            element(
                "li",
                element(
                    "span",
                    thumbnails.show(result.set, pair.a),
                    thumbnails.show(result.set, pair.b),
                    class_="faces",
                )
                if thumbnails.wanted
                else None,
                element("b", f"{pair.score:.3f}"),
                element("span", pair.a, class_="image-name"),
                element("span", pair.b, class_="image-name"),
            )
            for pair in pairs
        ),
        class_="pairs" if thumbnails.wanted else "pairs bare",
    )
