"""Charts as SVG within a page, whose style sheet gives them their colors, in light and in dark.

matplotlib's SVG carries its colors in style attributes, which neither follow the page nor pass a
policy against inline styles. It also takes twelve times as long and five times the bytes, of which
a page of ten models on twenty sets, with some 300 charts, would have too many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from evaluation.report.axis import Axis
from evaluation.report.charts import Chart, Line
from evaluation.report.element import element

COLORS = 10
DASHES = 4

Point = tuple[float, float]


class Frame:
    """Where on the drawing the axes stand."""

    def __init__(self, chart: Chart, width: float, height: float) -> None:
        self.x, self.y = chart.x, chart.y
        self.width, self.height = width, height
        self.left, self.right = 62.0, width - 18
        self.top, self.bottom = 10.0, height - 40

    def across(self, value: float) -> float:
        return self.left + self.x.place(value) * (self.right - self.left)

    def down(self, value: float) -> float:
        return self.bottom - self.y.place(value) * (self.bottom - self.top)


def svg(chart: Chart, width: float, height: float) -> Element:
    """The chart as an <svg>; width and height are CSS pixels at its natural size."""
    frame = Frame(chart, width, height)
    drawn = element(
        "svg",
        viewBox=f"0 0 {width:g} {height:g}",
        class_=f"plot {chart.kind}",
        role="img",
        aria_label=_described(chart),
        data_frame=f"{frame.left:g} {frame.top:g} {frame.right:g} {frame.bottom:g}",
        data_x=_scale(chart.x),
        data_y=_scale(chart.y),
        data_x_label=chart.x.label,
    )
    drawn.extend(_axes(frame))
    if chart.unshown is not None and chart.unshown > chart.x.low:
        edge = frame.across(chart.unshown)
        drawn.append(
            element(
                "rect",
                class_="unshown",
                x=frame.left,
                y=frame.top,
                width=round(edge - frame.left, 1),
                height=frame.bottom - frame.top,
            )
        )
    drawn.extend(_band(line, frame) for line in chart.lines if line.band)
    for line in chart.lines:
        drawn.extend(_line(line, frame))
    for value, text in chart.marks:
        drawn.extend(_mark(frame, value, text))
    return drawn


def series_class(series: int | str) -> str:
    """The classes that give a series its color and its dashes."""
    if isinstance(series, str):
        return f"s-{series}"
    return f"s{series % COLORS} d{series % DASHES}"


def key(series: int | str) -> Element:
    """A stroke as the series' lines have it, for a legend."""
    stroke = element("path", class_=f"line {series_class(series)}", d="M0 5H26")
    return element("svg", stroke, class_="key", viewBox="0 0 26 10", aria_hidden="true")


def interval_bar(value: float, low: float, high: float, scale: tuple[float, float]) -> Element:
    """A figure and its interval as a dot on a bar, on a scale that others share."""
    width, begin, end = 76.0, *scale
    span = (end - begin) or 1.0

    def across(number: float) -> float:
        return round(3 + (width - 6) * (number - begin) / span, 1)

    return element(
        "svg",
        element("path", class_="track", d=f"M0 4H{width:g}"),
        element("path", class_="span", d=f"M{across(low):g} 4H{across(high):g}"),
        element("circle", class_="dot", cx=across(value), cy=4, r=2.5),
        class_="bar",
        viewBox=f"0 0 {width:g} 8",
        aria_hidden="true",
    )


def _described(chart: Chart) -> str:
    names = ", ".join(line.name for line in chart.lines)
    return (
        f"{chart.title}: {chart.y.label} against {chart.x.label}, of {names}. {chart.about} "
        "The figures are in the table."
    )


def _scale(axis: Axis) -> str:
    return f"{'log' if axis.log else 'linear'} {axis.low:g} {axis.high:g} {int(axis.percent)}"


def _axes(frame: Frame) -> Iterable[Element]:
    grid, texts = [], []
    for value, text in frame.x.ticks():
        x = frame.across(value)
        grid.append(f"M{x:.1f} {frame.top:g}V{frame.bottom:g}")
        texts.append(element("text", text, x=round(x, 1), y=frame.bottom + 16, class_="x"))
    for value, text in frame.y.ticks(5):
        y = frame.down(value)
        grid.append(f"M{frame.left:g} {y:.1f}H{frame.right:g}")
        texts.append(element("text", text, x=frame.left - 7, y=round(y + 3.5, 1), class_="y"))
    yield element("path", class_="grid", d="".join(grid))
    yield element("path", class_="axis", d=f"M{frame.left:g} {frame.bottom:g}H{frame.right:g}")
    yield element("g", *texts, class_="ticks")
    middle = (frame.left + frame.right) / 2
    yield element("text", frame.x.label, class_="label", x=middle, y=frame.height - 5)
    up = (frame.top + frame.bottom) / 2
    yield element(
        "text", frame.y.label, class_="label", transform=f"translate(10 {up:g}) rotate(-90)"
    )


def _line(line: Line, frame: Frame) -> Iterable[Element]:
    points = _thinned([(frame.across(x), frame.down(y)) for x, y in line.points if _on(frame, x)])
    if not points:
        return
    classes = series_class(line.series)
    if line.filled:
        outline = [(points[0][0], frame.bottom), *points, (points[-1][0], frame.bottom)]
        yield element("path", class_=f"area {classes}", d=_path(outline) + "Z")
        x, y = min(points, key=lambda point: point[1])
        yield element("text", line.name, class_=f"peak {classes}", x=x, y=max(y - 5, frame.top + 8))
    if len(points) == 1:
        (x, y) = points[0]
        yield element("circle", class_=f"point {classes}", cx=x, cy=y, r=3)
    yield element("path", class_=f"line {classes}", d=_path(points), data_name=line.name)


def _band(line: Line, frame: Frame) -> Element:
    shown = [part for part in line.band if _on(frame, part[0])]
    upper = _thinned([(frame.across(x), frame.down(high)) for x, _, high in shown])
    lower = _thinned([(frame.across(x), frame.down(low)) for x, low, _ in shown])
    edge = _path([*upper, *reversed(lower)])
    return element("path", class_=f"band {series_class(line.series)}", d=f"{edge}Z" if edge else "")


def _mark(frame: Frame, value: float, text: str) -> Iterable[Element]:
    x = round(frame.across(value), 1)
    yield element("path", class_="mark", d=f"M{x:g} {frame.top:g}V{frame.bottom:g}")
    at_left = x > (frame.left + frame.right) / 2
    yield element(
        "text",
        text,
        class_="mark-text at-left" if at_left else "mark-text",
        x=x - 5 if at_left else x + 5,
        y=frame.top + 9,
    )


def _on(frame: Frame, x: float) -> bool:
    """Whether x has a place: 0 has none on a logarithmic axis."""
    slack = 1e-9 * abs(frame.x.high)
    return frame.x.low * (1 - 1e-9) - (0 if frame.x.log else slack) <= x <= frame.x.high + slack


def _thinned(points: Sequence[Point]) -> list[Point]:
    """To half a pixel, without repeats and without what lies within a straight run."""
    kept: list[Point] = []
    for x, y in points:
        point = (round(2 * x) / 2, round(2 * y) / 2)
        if kept and kept[-1] == point:
            continue
        if len(kept) > 1 and _straight(kept[-2], kept[-1], point):
            kept[-1] = point
        else:
            kept.append(point)
    return kept


def _straight(a: Point, b: Point, c: Point) -> bool:
    turn = (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
    forward = (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1])
    return turn == 0 and forward > 0


def _path(points: Sequence[Point]) -> str:
    return "".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
