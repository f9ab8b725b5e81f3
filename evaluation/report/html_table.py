"""Grids as tables of a page: names at the left, numbers aligned, intervals as small bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element

from evaluation.report.element import Content, element
from evaluation.report.grid import Cell, Grid
from evaluation.report.svg import interval_bar, key
from evaluation.result import Figure

Span = tuple[float, float, float]


def html_table(
    grid: Grid,
    *,
    series: Mapping[str, int] | None = None,
    links: Mapping[str, str] | None = None,
) -> Element:
    """The grid in a box that scrolls sideways where it is too wide, with its notes below.

    Args:
        series: colors of the columns and names that are models, where there are several.
        links: from names at the left to places on the page.
    """
    series, links = series or {}, links or {}
    heads = [
        element(
            "th",
            key(series[name]) if name in series else None,
            name,
            scope="col",
            class_="name" if i < grid.names else "number",
        )
        for i, name in enumerate(grid.columns)
    ]
    scales = _scales(grid)
    rows = [
        element(
            "tr",
            *(_name(cell, first=i == 0, links=links, series=series) for i, cell in enumerate(left)),
            *(_number(cell, scale) for cell, scale in zip(right, scales[number])),
        )
        for number, (left, right) in enumerate(
            (r[: grid.names], r[grid.names :]) for r in grid.rows
        )
    ]
    table = element(
        "table",
        element("caption", grid.title, class_="unseen"),
        element("thead", element("tr", *heads)),
        element("tbody", *rows),
    )
    return element(
        "div",
        scrolling(table, grid.title),
        *(element("p", f"{caption}.", class_="caption") for caption in grid.captions),
        element(
            "ol",
            *(element("li", note) for note in grid.notes),
            class_="notes",
        )
        if grid.notes
        else None,
        class_="grid",
    )


def scrolling(table: Element, title: str) -> Element:
    """A box that a wide table scrolls in, by keyboard, too."""
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=title)


def facts(pairs: Iterable[tuple[str, Content]]) -> Element:
    """A list of names and what is said of them."""
    return element(
        "dl",
        *(element("div", element("dt", name), element("dd", content)) for name, content in pairs),
    )


def _name(
    cell: Cell, *, first: bool, links: Mapping[str, str], series: Mapping[str, int]
) -> Element:
    target = links.get(cell.text) if first else None
    text: Content = element("a", cell.text, href=f"#{target}") if target else cell.text
    stroke = key(series[cell.text]) if cell.text in series else None
    if first:
        return element("th", stroke, text, scope="row", class_="name")
    return element("td", stroke, text, class_="name")


def _number(cell: Cell, scale: tuple[float, float] | None) -> Element:
    span = _span(cell.figure)
    note = element("sup", str(cell.note), class_="note") if cell.note else None
    return element(
        "td",
        element("strong" if cell.best else "span", cell.text, note, class_="value"),
        element("span", cell.doubt, class_="doubt") if cell.doubt else None,
        interval_bar(*span, scale) if span and scale else None,
        class_="number best" if cell.best else "number",
    )


def _scales(grid: Grid) -> list[list[tuple[float, float] | None]]:
    """For every cell right of the names what its bar is drawn on: that of its row or column."""
    spans = [[_span(cell.figure) for cell in row[grid.names :]] for row in grid.rows]
    if grid.one_figure_a_row:
        return [[_scale(row)] * len(row) for row in spans]
    columns = [_scale(column) for column in zip(*spans)]
    return [columns for _ in spans]


def _scale(spans: Sequence[Span | None]) -> tuple[float, float] | None:
    """From the lowest end to the highest; None for fewer than two, which compare with nothing."""
    found = [span for span in spans if span]
    if len(found) < 2:
        return None
    return min(low for _, low, _ in found), max(high for _, _, high in found)


def _span(figure: Figure | None) -> Span | None:
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return None
    span = (figure.value, figure.low, figure.high)
    return span if all(map(math.isfinite, span)) else None
