"""Grids as tables of a page: names at the left, numbers aligned, intervals as small bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from evaluation.report.element import Content, element
from evaluation.report.grid import Cell, Grid
from evaluation.report.svg import interval_bar, key
from evaluation.result import Figure

_IN_ONE_LINE = 3  # columns at most whose intervals stand beside the numbers, not below

Scale = tuple[float, float]
Span = tuple[float, float, float]


@dataclass(frozen=True)
class Layout:
    """Whether any number of a column has an interval, and whether any is drawn as a bar."""

    doubts: bool
    bars: bool


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
            element("span", name, class_="head"),
            scope="col",
            class_="name" if i < grid.names else "number",
        )
        for i, name in enumerate(grid.columns)
    ]
    scales = _scales(grid)
    layouts = [
        Layout(any(cell.doubt for cell in column), any(column_scales))
        for column, column_scales in zip(zip(*(r[grid.names :] for r in grid.rows)), zip(*scales))
    ]
    rows, heading = [], None
    for row, row_scales in zip(grid.rows, scales):
        first, *others = row[: grid.names]
        if heading is not None and not first.text:  # it holds for this row, too
            heading.set("rowspan", str(1 + int(heading.get("rowspan", 1))))
            names = []
        else:
            target = links.get(first.text)
            text = element("a", first.text, href=f"#{target}") if target else first.text
            stroke = key(series[first.text]) if first.text in series else None
            below = element("span", first.doubt, class_="doubt") if first.doubt else None
            fitted = element("span", text, below, class_="fit")
            heading = element("th", stroke, fitted, scope="row", class_="name")
            names = [heading]
        names += [_name(cell, series) for cell in others]
        numbers = [
            _number(cell, scale, layout)
            for cell, scale, layout in zip(row[grid.names :], row_scales, layouts)
        ]
        rows.append(element("tr", *names, *numbers))
    table = element(
        "table",
        element("caption", grid.title, class_="unseen"),
        element("thead", element("tr", *heads)),
        element("tbody", *rows),
        class_="inline" if len(grid.columns) - grid.names <= _IN_ONE_LINE else None,
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


def _name(cell: Cell, series: Mapping[str, int]) -> Element:
    stroke = key(series[cell.text]) if cell.text in series else None
    return element("td", stroke, element("span", cell.text, class_="fit"), class_="name")


def _number(cell: Cell, scale: Scale | None, layout: Layout) -> Element:
    """A cell with room for what others of its column have, so that numbers stay aligned."""
    span = _span(cell.figure)
    note = element("sup", str(cell.note), class_="note") if cell.note else None
    bar = interval_bar(*span, scale) if span and scale else element("span", class_="bar")
    return element(
        "td",
        element("strong" if cell.best else "span", cell.text, note, class_="value"),
        element("span", cell.doubt, class_="doubt") if layout.doubts else None,
        bar if layout.bars else None,
        class_="number best" if cell.best else "number",
    )


def _scales(grid: Grid) -> list[list[Scale | None]]:
    """For every cell right of the names what its bar is drawn on: that of its row or column."""
    spans = [[_span(cell.figure) for cell in row[grid.names :]] for row in grid.rows]
    if grid.one_figure_a_row:
        return [[_scale(row)] * len(row) for row in spans]
    columns = [_scale(column) for column in zip(*spans)]
    return [columns for _ in spans]


def _scale(spans: Sequence[Span | None]) -> Scale | None:
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
