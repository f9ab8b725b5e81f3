"""A stage's figures as bars in a PNG: images a second of each way, by what took turns."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

COLORS = {
    "ours": "#2b6cb0",
    "arcface_torch": "#b7791f",
    "float32 NCHW": "#b7791f",
    "bare libjpeg-turbo": "#718096",
    "products": "#718096",
}
OTHERS = "#63a4d8"
_CALLED = {"rate": "sample rate"}
CASE = ("classes", "rate", "dtype", "model", "batch", "ranks")
LOGARITHMIC = ("head", "stream")


def draw(path: Path, figures: list[dict[str, Any]], stage: str, *, title: str) -> None:
    """Write the chart of what was timed; the lines at the bars' ends go from the 5th to the 95th
    percentile. Where images a second differ much, the axis is logarithmic."""
    timed = [row for row in figures if "images_per_s" in row]
    figure = Figure(figsize=(8, 1.0 + 0.24 * len(timed) + 0.3 * _turns(timed)), dpi=110)
    axes = figure.add_subplot()
    labels, places, place = [], [], 0.0
    for _, rows in groupby(timed, key=lambda row: row.get("turn")):
        place += 0.6
        for row in rows:
            rate = row["images_per_s"]
            color = COLORS.get(row.get("way", ""), OTHERS)
            error = _error(row)
            axes.barh(place, rate, color=color, height=0.8, xerr=error, ecolor="#2d3748")
            end = rate + (error[1][0] if error else 0)
            axes.text(end, place, f"  {_three_digits(rate)}", va="center", fontsize=7)
            labels.append(_label(row, stage))
            places.append(place)
            place += 1.0
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_ylim(place, 0)  # the first on top
    if stage in LOGARITHMIC:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    axes.set_xlabel("images/s, more is better")
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")


def _three_digits(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:#.3g}"


def _turns(rows: list[dict[str, Any]]) -> int:
    return len({row.get("turn") for row in rows})


def _label(row: dict[str, Any], stage: str) -> str:
    case = [
        row[key] if isinstance(row[key], str) else f"{_CALLED.get(key, key)} {row[key]:,.10g}"
        for key in CASE
        if key in row and not (stage == "backbone" and key == "dtype")
    ]
    return ", ".join([*case, row.get("way", "")]).strip(", ")


def _error(row: dict[str, Any]) -> list[list[float]] | None:
    if "seconds_p5" not in row:
        return None
    rate, work = row["images_per_s"], row["images_per_s"] * row["seconds"]
    return [[rate - work / row["seconds_p95"]], [work / row["seconds_p5"] - rate]]
