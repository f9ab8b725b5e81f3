"""Charts as pixels, for TensorBoard and whoever else shows no page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation.report import charts
from evaluation.report.axis import Axis
from evaluation.report.charts import Chart, Line
from evaluation.result import Result

_COLORS = ("#1f5fae", "#c2491d", "#2a7a52", "#7d4aa3", "#8c6d05", "#0b7580", "#b02f65", "#4a5467")
_OF_SCORES = {"genuine": "#0b7580", "impostor": "#7a7f88"}
_INK, _SOFT_INK, _GRID, _UNSHOWN = "#1b1e23", "#5b626d", "#ebe8e2", "#f0ede7"
_DPI = 110


def roc_picture(results: Sequence[Result]) -> np.ndarray | None:
    """The ROC of models on one set, (H, W, 3) uint8; None where none has a curve."""
    series = {result.model: place for place, result in enumerate(results)}
    chart = charts.roc(results, series)
    return picture(chart) if chart else None


def scores_picture(result: Result) -> np.ndarray | None:
    """The histogram of genuine and impostor scores, (H, W, 3) uint8; None without one."""
    chart = charts.scores(result)
    return picture(chart) if chart else None


def picture(chart: Chart, *, width: float = 6.4, height: float = 4.2) -> np.ndarray:
    """The chart as (H, W, 3) uint8; width and height in inches at 110 dots each."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(_literal(chart.title), loc="left", color=_INK, fontsize=11, fontweight="bold")
    _scale(axes, chart)
    if chart.unshown is not None and chart.unshown > chart.x.low:
        axes.axvspan(chart.x.low, chart.unshown, color=_UNSHOWN, linewidth=0)
    for line in chart.lines:
        _draw(axes, line)
    for value, text in chart.marks:
        axes.axvline(value, color=_INK, linewidth=1, linestyle=":", label=text)
    if len(chart.lines) > 1 or chart.marks:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _draw(axes: Axes, line: Line) -> None:
    if isinstance(line.series, str):
        color = _OF_SCORES[line.series]
    else:
        color = _COLORS[line.series % len(_COLORS)]
    x, y = zip(*line.points)
    axes.plot(x, y, color=color, linewidth=1.6, label=_literal(line.name))
    if line.filled:
        axes.fill_between(x, y, color=color, alpha=0.16, linewidth=0)
    if line.band:
        at, low, high = zip(*line.band)
        axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)


def _scale(axes: Axes, chart: Chart) -> None:
    for axis, scale, limits, ticks, label in (
        (chart.x, axes.set_xscale, axes.set_xlim, axes.set_xticks, axes.set_xlabel),
        (chart.y, axes.set_yscale, axes.set_ylim, axes.set_yticks, axes.set_ylabel),
    ):
        scale("log" if axis.log else "linear")
        values, texts = _ticks(axis)
        ticks(values, texts)
        ticks([], minor=True)
        limits(axis.low, axis.high)
        label(axis.label, color=_SOFT_INK, fontsize=9)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT_INK, labelsize=8.5, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT_INK)


def _ticks(axis: Axis) -> tuple[list[float], list[str]]:
    ticks = axis.ticks()
    return [value for value, _ in ticks], [text for _, text in ticks]


def _literal(text: str) -> str:
    """Text in which matplotlib must not look for formulas, nor for lines to be hidden."""
    return text.replace("$", r"\$").lstrip("_")
