"""An experiment of many trainings, each of them one cell: what is finished is a line of a file.

A call does what is missing, so that one that was interrupted goes on with the next cell.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import about_cpu

ROOT = Path(__file__).resolve().parents[1]

Cell = Mapping[str, Any]  # the settings of one; with what was found of them, once it is finished


def finished(results: Path) -> list[dict[str, Any]]:
    """The lines of a file, one for each cell; none where there is no file."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


def do_missing(
    measure: Callable[..., dict[str, Any]],
    wanted: Sequence[Cell],
    results: Path,
    *,
    at_most: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Do the wanted cells that have no line yet, and add it when each of them is finished.

    Args:
        measure: takes a cell's settings by keyword, and returns what was found.
        at_most: so many of them.

    Yields:
        the new lines.
    """
    known = finished(results)
    missing = [cell for cell in wanted if not any(is_of(line, cell) for line in known)]
    for cell in missing[:at_most]:
        # Read before it runs: what is changed meanwhile is not what ran.
        origin = {"code": digest_of_code(), **_machine()}
        line = {**cell, **measure(**cell), **origin}
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        yield line


def is_of(line: Cell, settings: Cell) -> bool:
    """Whether a line is of a cell with these settings."""
    return all(line.get(name) == value for name, value in settings.items())


def mean_and_deviation(lines: Sequence[Cell], figure: str) -> tuple[float, float]:
    """Over the seeds; a deviation of NaN where there is one only."""
    values = [line[figure] for line in lines]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")


def shown(lines: Sequence[Cell], figure: str) -> str:
    """Mean and deviation, for a table."""
    mean, deviation = mean_and_deviation(lines, figure)
    return f"{mean:.4f} ± {deviation:.4f}"


def digest_of_code() -> str:
    """Of what such a training runs: heads, networks, step, the drawing of faces, the cell."""
    digest = hashlib.sha256()
    folders = ("heads", "models", "training/step", "synthetic")
    paths = [path for folder in folders for path in sorted(ROOT.joinpath(folder).rglob("*.py"))]
    for path in (*paths, ROOT / "benchmarks/short_training.py", ROOT / "benchmarks/kept_faces.py"):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _machine() -> dict[str, Any]:
    about = about_cpu()
    return {name: about[name] for name in ("date", "cpu", "torch_uses", "torch", "commit")}
