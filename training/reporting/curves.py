"""The curves of a run, drawn from its log of metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.named_path import as_text
from training.reporting.journal import Curve, read_curves

_COLORS = ("#2f6db5", "#d1602b", "#3c8d5a", "#8a5fa8", "#b08a1e", "#5b6470")
_INK, _SOFT_INK, _GRID = "#2b2f36", "#6b7280", "#e3e6ea"
_MANY_POINTS = 60


def plot_curves(metrics: Path, output: Path) -> None:
    """Draw loss, the sets' main figures, learning rate and images/s against the step, as one PNG.

    Args:
        metrics: JSON lines, each with an integer "step" and any of "loss", "lr", "images_per_s"
            and "verification" ({set: {main figure: ...}}). Where a resumed run logs a step again,
            the later line counts. The folder's name is the picture's title.
        output: the PNG to write; its folder is made if need be.

    Raises:
        UserError: the file is missing, empty or garbled; says in which line.
    """
    curves = read_curves(metrics)
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(11, 7), layout=layout, facecolor="white")
    figure.suptitle(
        _literal(metrics.resolve().parent.name), color=_INK, fontsize=15, fontweight="bold"
    )
    (loss, accuracy), (rate, speed) = figure.subplots(2, 2, sharex=True)

    _draw(loss, curves["loss"], "Loss", show="{:.4g}".format, smooth=True)
    _draw(accuracy, curves["verification"], "Verification", show=_percent, legend=True)
    _draw(rate, curves["lr"], "Learning rate", show="{:.4g}".format)
    _draw(speed, curves["images_per_s"], "Images per second", show="{:,.0f}".format, smooth=True)
    for axes in (rate, speed):
        axes.set_ylim(bottom=0)  # a dip must not look larger than it is
        axes.set_xlabel("step", color=_SOFT_INK)

    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, format="png", dpi=130)


def _draw(
    axes: Axes,
    curves: dict[str, Curve],
    title: str,
    *,
    show: Callable[[float], str],
    smooth: bool = False,
    legend: bool = False,
) -> None:
    """One panel; the last values stand in the legend, or without one above the only curve."""
    axes.set_title(title, loc="left", color=_INK, fontsize=11.5, fontweight="bold", pad=8)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.tick_params(colors=_SOFT_INK, labelsize=9, length=0, labelbottom=True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.set_axisbelow(True)
    if not curves:
        middle: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, "nothing logged yet", color=_SOFT_INK, **middle)
        axes.yaxis.set_visible(False)
        return
    axes.grid(color=_GRID, linewidth=0.8)
    for i, (name, curve) in enumerate(curves.items()):
        steps, values = np.array(list(curve.keys())), np.array(list(curve.values()))
        last = show(values[-1])
        color = _COLORS[i % len(_COLORS)]
        marker = "o" if len(values) < _MANY_POINTS else ""
        if smooth and len(values) >= _MANY_POINTS:
            axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
            steps, values = _running_mean(steps, values)
        style: dict[str, Any] = {"color": color, "linewidth": 2, "marker": marker, "markersize": 4}
        axes.plot(steps, values, label=f"{name}  {last}", **style)
    if legend:
        axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=_INK)
    else:
        axes.set_title(f"last {last}", loc="right", color=_SOFT_INK, fontsize=9.5, pad=8)


def _literal(text: str) -> str:
    """Text in which matplotlib must not look for formulas, nor for letters that are none."""
    return as_text(text).encode(errors="replace").decode().replace("$", r"\$")


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def _running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over a thirtieth of the curve, each at the middle of what it was taken over."""
    window = 2 * (len(values) // 60) + 1
    half = window // 2
    return steps[half : len(steps) - half], np.convolve(values, np.ones(window) / window, "valid")
