"""The main rank's voice, and all the places that it is heard."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from facestream import UserError
from training.config import Config
from training.health.facts import Facts
from training.health.watch import Watch
from training.reporting.dashboards.dashboard import Dashboard
from training.reporting.dashboards.others import open_others
from training.reporting.dashboards.tensorboard import TensorBoard
from training.reporting.findings import Findings
from training.reporting.journal import Journal, Position
from training.reporting.lines import open_console, show
from training.reporting.outlet import Outlet
from training.reporting.run_log import RunLog
from training.reporting.tags import Tags, of_set
from training.saving.files import Scores, main_figure


class Reporter:
    """The main rank's voice: console with a progress bar, run.log, dashboards, and JSON lines.

    None of them fails whoever speaks: see training.reporting. Whoever prints to the console must
    have `reporting.console.protect_console` see to that.

    Args:
        folder: the run's.
        at: where it begins.
        scales_losses: whether steps scale their losses, which the console's lines then tell.
        also: dashboards beside TensorBoard, as log.also names them.
        pictures: whether faces may be shown.
        facts: what the metrics are judged against; without, nothing is said of the run's health.
    """

    def __init__(
        self,
        folder: Path,
        *,
        at: Position,
        scales_losses: bool = False,
        also: Sequence[str] = (),
        pictures: bool = True,
        facts: Facts | None = None,
    ) -> None:
        self.console, self._scales_losses = open_console(), scales_losses
        self._pictures = pictures
        self.tensorboard_path = folder / "tensorboard"
        self.curves_path = folder / "curves.png"
        self._log = RunLog(folder / "run.log")
        self._log.attach()
        self.journal = Journal(folder, step=at.step)
        # A run from its start has not even been verified: nothing of a try before it is shown.
        board = TensorBoard(self.tensorboard_path, first_step=at.step + 1 if at.step else 0)
        self._dashboards: list[Dashboard] = [board, *open_others(also, folder, fresh=not at.step)]
        self._watch = Watch(facts, self.journal.lines) if facts else None
        self.findings = Findings(
            folder,
            self.tensorboard_path,
            dashboards=self._dashboards,
            pictures=pictures,
            health=self._watch.section if self._watch else lambda: None,
        )
        self._expected = self._watch.expected_losses() if self._watch else {}
        if self._expected:
            board.overlay("loss", ("loss/loss", "loss/expected_low", "loss/expected_high"))
        self._show_expected(at.step)
        self._tags = Tags()
        self._curves = Outlet(str(self.curves_path))
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]:.2f}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(
            "train", total=at.total_steps, completed=at.step, epoch=at.epoch, line=""
        )
        self._progress.start()

    def say(self, text: str) -> None:
        """A line for the person who watches, and for who looks into run.log afterwards."""
        self._log.write(text)
        show(self.console, text)

    def note(self, text: str) -> None:
        """A line for run.log alone."""
        self._log.write(text)

    def introduce(self, config: Config, lines: Sequence[str]) -> None:
        """Say what is about to run: these lines, and the settings that are no defaults.

        The defaults go to run.log, all settings to the dashboards.
        """
        changed = config.changes()
        for line in config.lines():
            (self.say if line in changed else self.note)(line)
        for line in lines:
            self.say(line)
        for dashboard in self._dashboards:
            dashboard.settings(config.settings())

    def advance(self, at: Position) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=at.step, epoch=at.epoch)

    def training(self, at: Position, reading: Mapping[str, float]) -> None:
        """One reading, named as in reporting/meters.py; the console's line is arcface_torch's."""
        self.journal.write(at, reading)
        self._scalars(self._tags.named(reading), at.step)
        line = f"{reading['images_per_s']:.0f} images/s  loss {reading['loss']:.3f}"
        self._progress.update(self._task, line=f"{line}  lr {reading['lr']:.4f}")
        shares = {
            name.removeprefix("share_"): share
            for name, share in reading.items()
            if name.startswith("share_")
        }
        scale = f"Fp16 Grad Scale: {reading['loss_scale']:.9g}   " if self._scales_losses else ""
        self.say(
            f"Speed {reading['images_per_s']:.2f} samples/sec   Loss {reading['loss']:.4f}   "
            f"LearningRate {reading['lr']:.6f}   Epoch: {at.epoch:.2f}   "
            f"Global Step: {at.step}/{at.total_steps}   {scale}"
            f"Required: {reading['seconds_left'] / 3600:.2f} hours   "
            f"Memory: {reading['memory_mb']:.0f} MB   "
            + " ".join(f"{phase} {share:.0%}" for phase, share in shares.items())
        )
        for line in self._watch.news() if self._watch else ():
            self.say(line)

    def verification(self, at: Position, results: Mapping[str, Mapping[str, float]]) -> None:
        """Scores of each set."""
        self.journal.write(at, {"verification": results})
        for name, scores in results.items():
            self._scalars(of_set(name, scores), at.step)
            self.say(f"[{name}][{at.step}] {_line(scores)}")

    def verified(self, step: int) -> dict[str, dict[str, float]]:
        """The scores that metrics.jsonl has of a step; empty where it has none."""
        return {
            name: scores
            for at, results in self.journal.verifications()
            if at == step
            for name, scores in results.items()
        }

    def go_back(self, at: Position) -> None:
        """Forget what was written of steps that come again."""
        self.journal.forget_after(at.step)
        for dashboard in self._dashboards:
            dashboard.forget_from(at.step + 1)
        self._show_expected(at.step)
        self.advance(at)

    def images(self, at: Position, images: torch.Tensor) -> None:
        """A grid of the first 32 of (B, 3, H, W) uint8 images, as the network sees them."""
        if not self._pictures:
            return
        rows = min(4, len(images) // 8) or 1
        shown = images[: rows * 8].cpu()
        columns = len(shown) // rows
        _, channels, height, width = shown.shape
        grid = shown.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
        picture = grid.reshape(rows * height, columns * width, channels).numpy()
        self._image("data/images", picture, at.step)

    def finish(self, settings: Mapping[str, Any], results: Scores) -> None:
        """The settings of a run that is finished beside its last scores."""
        scores: dict[str, float] = {}
        for name, found in results.items():
            scores |= of_set(name, found)
        for dashboard in self._dashboards:
            dashboard.finish(settings, scores)

    def sum_up(self, checkpoint: Path | None) -> None:
        """Draw the curves; say how verification went and where everything lies."""
        from training.reporting.curves import plot_curves  # a second that no start should take

        drawn = False
        try:
            drawn = self._curves.attempt(lambda: plot_curves(self.journal.path, self.curves_path))
        except UserError as error:
            self.say(f"no curves: {error}")
        history: dict[str, list[tuple[str, float]]] = {}
        for _, results in self.journal.verifications():
            for name, scores in results.items():
                history.setdefault(name, []).append(main_figure(scores))
        for name, figures in history.items():
            (_, first), (figure, last) = figures[0], figures[-1]
            before = f"{first:.4f} → " if len(figures) > 1 else ""
            self.say(f"verification {name}: {figure} {before}{last:.4f}")
        for line in self._watch.conclusion() if self._watch else ():
            self.say(line)
        folder = shlex.quote(str(self.tensorboard_path))
        self.say(f"TensorBoard  tensorboard --logdir {folder}")
        self.say(f"checkpoint   {checkpoint}")
        if self.findings.report:
            self.say(f"report       {self.findings.report}")
        if drawn:
            self.say(f"curves       {self.curves_path}")
        self.say(f"log          {self._log.path}")

    def close(self) -> None:
        """End the progress bar and the dashboards; `say` and `sum_up` work on."""
        self._progress.stop()
        for dashboard in self._dashboards:
            dashboard.close()
        self._log.detach()

    def _show_expected(self, after: int) -> None:
        """The losses to expect at later steps, beside which those of the run will stand."""
        for step, span in self._expected.items():
            if step > after:
                self._scalars(span, step)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for dashboard in self._dashboards:
            dashboard.scalars(values, step)

    def _image(self, name: str, image: np.ndarray, step: int) -> None:
        for dashboard in self._dashboards:
            dashboard.image(name, image, step)


def _line(scores: Mapping[str, float]) -> str:
    """The scores of a set, for people."""
    if scores.keys() >= {"accuracy", "accuracy_std", "auc"}:
        line = (
            f"Accuracy {scores['accuracy']:.4f} ± {scores['accuracy_std']:.4f}   "
            f"AUC {scores['auc']:.4f}"
        )
        shown = "tar_at_far" in scores  # small sets cannot show it
        return line + (f"   TAR@FAR=1e-3 {scores['tar_at_far']:.4f}" if shown else "")
    return "   ".join(f"{name} {value:.4f}" for name, value in scores.items())
