"""A run's health as a section of its report: findings, figures beside those to expect, a chart."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from evaluation.report.axis import Axis
from evaluation.report.charts import Chart, Line
from evaluation.report.element import element
from evaluation.report.grid import Cell, Grid
from evaluation.report.html_table import html_table
from evaluation.report.svg import svg
from training.health.causes import diagnose, is_early
from training.health.course import Course
from training.health.expected import Comparison, compare, expectation_of
from training.health.facts import Facts

_SIZE = (700.0, 300.0)  # of the chart, in CSS pixels
_POINTS = 400  # of a curve: more are not told apart


def section(course: Course, facts: Facts) -> Element:
    """The section, of a run that has readings."""
    expected, source = expectation_of(facts)
    compared = compare(course, expected) if expected else []
    findings = diagnose(course, facts)
    if findings:
        said = element("ul", *(element("li", str(finding)) for finding in findings))
    elif is_early(course, facts):
        said = element("p", "Nothing wrong is seen so far; whether it learns shows later.")
    else:
        said = element("p", "Nothing wrong is seen in its metrics.")
    return element(
        "section",
        element("h2", "Is this run healthy?"),
        said,
        element("p", f"Expected: {source}.", class_="caption"),
        html_table(_table(compared)) if compared else None,
        _chart(course, facts, compared),
        id="health",
    )


def _table(compared: list[Comparison]) -> Grid:
    rows = []
    for one in compared:
        digits = 2 if one.what == "loss" else 4
        found = "" if one.found is None else f"{one.found:.{digits}f}"
        span = f"{one.low:.{digits}f} to {one.high:.{digits}f}"
        texts = (one.what, f"{one.epoch:g}", found, span, one.verdict)
        rows.append([Cell(text) for text in texts])
    columns = ("", "epoch", "this run", "expected", "")
    return Grid("Beside what is expected", columns, rows, names=1)


def _chart(course: Course, facts: Facts, compared: list[Comparison]) -> Element | None:
    known = [line for line in course.readings if line.get("loss") is not None]
    if not known:
        return None
    every = -(-len(known) // _POINTS)
    points = [(line["epoch"], line["loss"]) for line in known[every - 1 :: every]]
    spans = [(one.epoch, one.low, one.high) for one in compared if one.what == "loss"]
    lines = [Line("this run", 0, points)]
    if spans:
        middle = [(epoch, (low + high) / 2) for epoch, low, high in spans]
        lines.insert(0, Line("expected", 1, middle, band=spans))
    ends = [loss for _, loss in points] + [high for _, _, high in spans]
    about = "The loss of this run by epoch"
    about += ", and a band of what is expected." if spans else "."
    chart = Chart(
        kind="loss",
        title="Loss",
        about=about,
        x=Axis("epoch", 0.0, max(float(facts.settings["run.epochs"]), course.epoch)),
        y=Axis("loss", 0.0, 1.05 * max(*ends, 1e-3)),
        lines=lines,
    )
    return element(
        "figure",
        element("figcaption", element("b", chart.title), f" {about}"),
        svg(chart, *_SIZE),
    )
