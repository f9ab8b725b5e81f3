"""How good a run's network is: shown at every evaluation, and left behind as a report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from evaluation.report.html import write_html
from evaluation.result import Curve, Evaluation, Model, Result
from evaluation.scoring import Scored
from facestream import UserError
from pipeline.whole_file import write_whole
from training.reporting.dashboards.dashboard import Dashboard
from training.reporting.journal import Position
from training.reporting.tags import group_of

# A stop is short of time, and intervals of large sets take minutes.
_STOPPED = {
    "missing": "a run makes them of its last state, and this one was stopped before it; "
    "tools/evaluate.py RUN@STEP makes them of a checkpoint"
}


@dataclass(frozen=True)
class _Found:
    """A set's newest result, the network that it is of, and what came with it."""

    model: Model
    result: Result
    scored: Scored


class Findings:
    """The newest result of every set.

    Nothing here ends a run: what cannot be drawn or written is a warning.

    Args:
        folder: the run's, which gets results.json and report.html.
        tensorboard: the folder that TensorBoard looks into.
        dashboards: show curves at every evaluation.
        pictures: whether faces may be shown; without, the report says that it holds none.
        health: gives the report's section on the run itself.

    Attributes:
        report: where it was written, if it was.
    """

    def __init__(
        self,
        folder: Path,
        tensorboard: Path,
        *,
        dashboards: Sequence[Dashboard],
        pictures: bool,
        health: Callable[[], Element | None] = lambda: None,
    ) -> None:
        self._folder, self._tensorboard = folder, tensorboard
        self._health = health
        self._dashboards, self._pictures = dashboards, pictures
        self._found: dict[str, _Found] = {}  # by set
        self.report: Path | None = None

    def add(self, at: Position, model: Model, scored: Scored) -> None:
        """Show a set's result, if it has one, and keep it.

        Args:
            model: the network as it is at this step.
        """
        if scored.result is None:
            return
        made = datetime.now(timezone.utc).isoformat(timespec="seconds")
        result = replace(scored.result, model=model.name, made=made)
        self._found[result.set] = _Found(model, result, scored)
        _attempt(f"the curves of {result.set}", lambda: self._show(result, at.step))

    def write(self) -> None:
        """Write results.json, report.html, and for TensorBoard's projector the first set's sample.

        Each is whole or not there; without a result nothing is written.
        """
        if self._found:
            _attempt("report.html", self._write_report)
            _attempt("TensorBoard's projector", self._write_projector)

    def _show(self, result: Result, step: int) -> None:
        from evaluation.report.picture import roc_picture, scores_picture  # matplotlib's second

        group = group_of(result.set)
        pictures = {"roc": roc_picture([result]), "scores": scores_picture(result)}
        for dashboard in self._dashboards:
            for name, picture in pictures.items():
                if picture is not None:
                    dashboard.image(f"{group}/{name}", picture, step)
            for kind in ("genuine", "impostor"):
                if kind in result.curves:
                    dashboard.histogram(f"{group}/{kind}", *_bins(result.curves[kind]), step)

    def _write_report(self) -> None:
        models = {found.model.name: found.model for found in self._found.values()}
        results = [
            found.result if found.result.interval else replace(found.result, interval=_STOPPED)
            for found in self._found.values()
        ]
        evaluation = Evaluation(list(models.values()), results)
        write_whole(self._folder / "results.json", evaluation.as_json())
        path = self._folder / "report.html"
        health = self._health()
        write_html(
            evaluation,
            path,
            pictures=self._picture if self._has_pictures() else None,
            more=[] if health is None else [health],
        )
        self.report = path

    def _has_pictures(self) -> bool:
        """Not where they are unwanted, nor of a run that was stopped, which keeps none."""
        return self._pictures and any(found.scored.pictures for found in self._found.values())

    def _picture(self, name: str, image: str) -> bytes | None:
        return self._found[name].scored.pictures.get(image)

    def _write_projector(self) -> None:
        from training.reporting.projector import write_projector

        sampled = [found for found in self._found.values() if found.scored.sample]
        for found in sampled[:1]:
            name, scored = found.result.set, found.scored
            write_projector(self._tensorboard, name, scored.sample, scored.pictures)


def _bins(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Of a histogram that is kept as the middles of equal bins: (N,) counts, (N + 1,) edges."""
    middles = np.asarray(curve.x)
    half = (middles[1] - middles[0]) / 2
    return np.asarray(curve.y), np.append(middles - half, middles[-1] + half)


def _attempt(what: str, work: Callable[[], None]) -> None:
    """Do what no run may end for; a mistake of ours shows its trace all the same."""
    try:
        work()
    except Exception as error:
        ours = not isinstance(error, (OSError, UserError))
        logging.warning("%s cannot be written: %s", what, error, exc_info=ours)
