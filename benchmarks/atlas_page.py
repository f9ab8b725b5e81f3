"""docs/atlas.md and docs/atlas.svg, made of the lines of benchmarks/atlas.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.cells import ROOT, Cell, is_of, mean_and_deviation
from benchmarks.kept_faces import Drawn
from benchmarks.short_training import FALSE_ACCEPT_RATE

PAGE, PICTURE = ROOT / "docs" / "atlas.md", ROOT / "docs" / "atlas.svg"
_COLORS = ("#1f5fae", "#c2491d", "#3c8d5a", "#8a5fa8", "#b08a1e")


def page(lines: Sequence[Cell], wanted: Sequence[Cell], faces: Drawn) -> str:
    """The page's text.

    Args:
        lines: of the cells that are finished.
        wanted: the settings of all, finished or not.
    """
    done = [line for cell in wanted for line in lines if is_of(line, cell)]
    missing = [cell for cell in wanted if not any(is_of(line, cell) for line in lines)]
    epochs = wanted[0]["epochs"]
    return "\n".join(
        (
            "# Recipe atlas",
            "",
            "Which loss, at which sample rate: with each, the same small network is trained on "
            "the same drawn faces,",
            "once for each seed. `make atlas` does the trainings that are missing, half a minute "
            "of one core each, and",
            "writes this page and its picture; nothing on it is written by hand.",
            "",
            f"- **Faces**: {faces.identities:,} drawn identities with {faces.images} images each, "
            f"64 pixels; {faces.pairs:,} pairs of other",
            f"  people. Digest of all these: {_all(done, 'data')}.",
            f"- **Training**: {epochs} epochs, a batch of 128, D = 128, a network of 0.2 M "
            "parameters, on one thread.",
            f"- **Code**, digest of what such a training runs: {_all(done, 'code')}.",
            f"- **Machine**: {_all(done, 'cpu', _cpu)}, torch {_all(done, 'torch')}.",
            f"- **Trainings**: {len(done)} of {len(wanted)} are finished, each of them one line of",
            "  [its file](../benchmarks/results/atlas_cpu.jsonl).",
            "",
            *_table(done, wanted),
            "",
            "Mean ± standard deviation over the seeds; seconds of CPU time, of the training alone. "
            "Accuracy is the mean of",
            "ten folds. Losses of different rows are not comparable: each is its own function. A "
            "row's command trains",
            "what is missing of it; to train it again, remove its lines from the file first.",
            "",
            *_doubt(done, wanted),
            "",
            "![accuracy and loss by epoch](atlas.svg)",
            "",
            "These are small faces and a short training. They show how loss and accuracy go where "
            "all is well (see",
            "[healthy.md](healthy.md)); they cannot show what a loss is worth after twenty epochs "
            "on millions of",
            "photographs.",
            "",
            *_missing(missing),
        )
    )


def draw(lines: Sequence[Cell], wanted: Sequence[Cell], path: Path) -> None:
    """Accuracy and training loss by epoch: a column a rate, a line a loss, a band of one standard
    deviation over the seeds."""
    # The same file for the same figures, and text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "facestream", "svg.fonttype": "none"})
    rates = _distinct(cell["rate"] for cell in wanted)
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    grid = figure.subplots(2, len(rates), sharex=True, sharey="row", squeeze=False)
    for column, rate in enumerate(rates):
        for loss, color in zip(_distinct(cell["margin"] for cell in wanted), _COLORS):
            alike = [line for line in lines if line["rate"] == rate and line["margin"] == loss]
            if not alike:
                continue
            for axes, name in zip(grid[:, column], ("accuracies", "losses")):
                curves = np.array([line[name] for line in alike])  # (seeds, epochs)
                epochs, mean, spread = (
                    np.arange(1, curves.shape[1] + 1),
                    curves.mean(0),
                    curves.std(0, ddof=1) if len(curves) > 1 else 0,
                )
                axes.plot(epochs, mean, color=color, marker="o", markersize=3, label=loss)
                axes.fill_between(
                    epochs, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0
                )
        grid[0, column].set_title(f"head.sample_rate={rate:g}", fontsize=10)
        grid[1, column].set_xlabel("epoch")
    for axes in grid.flat:
        axes.grid(color="#ebe8e2")
        axes.set_xticks(range(1, wanted[0]["epochs"] + 1))
    grid[0, 0].set_ylabel("accuracy on pairs of others")
    grid[1, 0].set_ylabel("training loss")
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _table(done: Sequence[Cell], wanted: Sequence[Cell]) -> list[str]:
    rows = [
        "| loss, its settings | rate | seeds | accuracy | TAR at FAR "
        f"{FALSE_ACCEPT_RATE:.0%} | loss at the end | seconds | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for loss, rate in _distinct((cell["margin"], cell["rate"]) for cell in wanted):
        alike = _alike(done, loss, rate)
        if not alike:
            continue
        settings = ", ".join(f"{name} {value:g}" for name, value in alike[0]["margin_args"].items())
        command = f"python benchmarks/atlas.py --faces runs/atlas --losses {loss} --rates {rate:g}"
        figures = (
            _shown(alike, "accuracy", 3),
            _shown(alike, "tar", 3),
            _shown(alike, "loss", 2),
            f"{statistics.mean(line['seconds'] for line in alike):.0f}",
        )
        cells = (f"{loss}: {settings}", f"{rate:g}", str(len(alike)), *figures, f"`{command}`")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _doubt(done: Sequence[Cell], wanted: Sequence[Cell]) -> list[str]:
    """What differences the seeds allow to see; nothing where no row has several."""
    rows = [
        alike
        for loss, rate in _distinct((cell["margin"], cell["rate"]) for cell in wanted)
        if len(alike := _alike(done, loss, rate)) > 1
    ]
    if not rows:
        return []
    pooled = math.sqrt(
        statistics.mean(mean_and_deviation(alike, "accuracy")[1] ** 2 for alike in rows)
    )
    # Of two means over as many seeds as the shortest row has.
    visible = 2 * pooled * math.sqrt(2 / min(map(len, rows)))
    lines = [
        f"Within a row the standard deviation of accuracy is {pooled:.3f}, over all rows; rows "
        f"that differ by less than {visible:.3f}",
        "(twice the standard error of a difference) are alike as far as these trainings can tell.",
        "",
    ]
    for rate in _distinct(cell["rate"] for cell in wanted):
        means = {
            alike[0]["margin"]: mean_and_deviation(alike, "accuracy")[0]
            for alike in rows
            if alike[0]["rate"] == rate
        }
        if len(means) > 1:
            best = max(means, key=lambda margin: means[margin])
            worse = [margin for margin in means if means[best] - means[margin] > visible]
            lines.append(
                f"- At a rate of {rate:g} {best} is highest, with {means[best]:.3f}; lower by more "
                f"than that difference: {', '.join(worse) or 'none'}."
            )
    return lines


def _missing(cells: Sequence[Cell]) -> list[str]:
    if not cells:
        return []
    names = ", ".join(f"{cell['margin']} {cell['rate']:g} seed {cell['seed']}" for cell in cells)
    return ["## Not finished", "", f"{names}.", ""]


def _alike(done: Sequence[Cell], loss: str, rate: float) -> list[Cell]:
    return [line for line in done if line["margin"] == loss and line["rate"] == rate]


def _shown(lines: Sequence[Cell], figure: str, digits: int) -> str:
    mean, deviation = mean_and_deviation(lines, figure)
    # Spaces that do not break keep the two together in a narrow column.
    doubt = (
        ""
        if math.isnan(deviation)
        else f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{deviation:.{digits}f}"
    )
    return f"{mean:.{digits}f}{doubt}"


def _all(lines: Sequence[Cell], name: str, shown: Any = str) -> str:
    """What lines have of something, each once."""
    return ", ".join(_distinct(f"{shown(line[name])}" for line in lines)) or "none yet"


def _cpu(about: Cell) -> str:
    family = f", family {about['cpu family']}" if "cpu family" in about else ""
    return f"{about.get('model name', 'a CPU of no name')}{family}"


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
