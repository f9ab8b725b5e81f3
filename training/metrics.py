"""What a run tells: meters that stay on the device, and the places their readings go.

A reading is a flat mapping, written to metrics.jsonl as one line with the integer `step` and the
`epoch`, which has a fraction, and to TensorBoard as training/reporting/tags.py names it. Its names
do not change:

    loss, distillation,                   means over the steps since the last reading that were
    gradient_norm, embedding_norm         not skipped; NaN where all were, null as JSON
    skipped_steps, nonfinite_losses       how many steps changed nothing; had no finite loss
    skipped_in_a_row                      how many steps up to now changed nothing
    loss_scale                            for the next step; 1 where losses are not scaled
    memory_mb                             peak so far of this rank, in 10^6 bytes: what tensors
                                          took of the GPU, or on a CPU the whole process
    lr                                    of the last step
    images_per_s                          over all ranks
    seconds_left                          to the last step, at this speed
    seconds_<phase>, share_<phase>        of a step, and their share of it: data, teacher,
                                          forward, head, backward, update, other; or
                                          step, where it is one CUDA graph
    data_wait_fraction                    of the time, in which the host waited for a batch
    host_bound_fraction                   of the time, in which the device ran out of work inside
                                          a step, so that the host set the pace; 0 on a CPU
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from pipeline.named_path import MALFORMED
from training.reporting.board import Board
from training.reporting.lines import open_console, show
from training.reporting.outlet import AppendedFile, Outlet
from training.reporting.run_log import RunLog
from training.reporting.tags import Tags
from training.step import StepResult
from training.stopwatch import Laps

_MEANS = ("loss", "distillation", "gradient_norm", "embedding_norm")
_BETWEEN_STEPS = ("data", "other")  # phases


class Meters:
    """Means of what steps return, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._steps = device, 0
        # Sums over steps: skipped, loss not finite, and of those that were not skipped what _MEANS
        # names; the newest loss scale; last, which no reading forgets, the steps skipped in a row.
        self._values = torch.zeros(4 + len(_MEANS), dtype=torch.float64, device=device)
        parts = self._values.split([2, len(_MEANS), 1, 1])
        self._counts, self._sums, self._loss_scale, self._in_a_row = parts

    def add(self, result: StepResult) -> None:
        """Count one step; reads nothing from the device."""
        counts = torch.stack([result.skipped, ~torch.isfinite(result.loss)])
        values = torch.stack([getattr(result, name) for name in _MEANS])
        self._counts.add_(counts)
        self._sums.add_(values.masked_fill(result.skipped, 0))
        self._loss_scale.copy_(result.loss_scale)
        self._in_a_row.add_(1).mul_(result.skipped)
        self._steps += 1

    def in_a_row(self) -> int:
        """How many steps up to now changed nothing; waits for the device."""
        return int(self._in_a_row.item())

    def read(self) -> dict[str, float]:
        """What was added since the last reading, by name; waits for the device, once."""
        skipped, nonfinite, *sums, loss_scale, in_a_row = self._values.tolist()
        counted = self._steps - skipped
        means = [total / counted if counted else float("nan") for total in sums]
        self._values[:-1].zero_()
        self._steps = 0
        return {
            **dict(zip(_MEANS, means)),
            "skipped_steps": skipped,
            "nonfinite_losses": nonfinite,
            "skipped_in_a_row": in_a_row,
            "loss_scale": loss_scale,
            "memory_mb": peak_memory(self._device) / 1e6,
        }


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took of an accelerator, or a CPU's process of its memory."""
    if device.type == "cpu":
        status = Path("/proc/self/status")
        if status.exists():  # of this program; rusage counts who started it, too
            lines = status.read_text().splitlines()
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return torch.get_device_module(device).max_memory_allocated(device)


@dataclass(frozen=True)
class Position:
    """How far a run is."""

    step: int
    epoch: float
    total_steps: int


def pace(laps: Laps, *, steps: int, images: int, steps_left: int) -> dict[str, float]:
    """The readings of the clocks, by name: `laps` over `steps` steps of `images` on all ranks."""
    per_step = laps.total / steps
    host_bound = sum(s for phase, s in laps.host_bound.items() if phase not in _BETWEEN_STEPS)
    return {
        "images_per_s": images / per_step,
        "seconds_left": per_step * steps_left,
        "data_wait_fraction": laps.host_seconds.get("data", 0.0) / laps.total,
        "host_bound_fraction": host_bound / laps.total,
        **{f"seconds_{phase}": seconds / steps for phase, seconds in laps.seconds.items()},
        **{f"share_{phase}": seconds / laps.total for phase, seconds in laps.seconds.items()},
    }


class Reporter:
    """The main rank's voice: console with a progress bar, run.log, TensorBoard, and JSON lines.

    None of them fails whoever speaks: see training.reporting. Whoever prints to the console must
    have `reporting.console.protect_console` see to that.

    Args:
        folder: the run's.
        at: where it begins.
        scales_losses: whether steps scale their losses, which the console's lines then tell.
    """

    def __init__(self, folder: Path, *, at: Position, scales_losses: bool = False) -> None:
        self.console, self._scales_losses = open_console(), scales_losses
        self.metrics_path = folder / "metrics.jsonl"
        self.tensorboard_path = folder / "tensorboard"
        self.curves_path = folder / "curves.png"
        self._log = RunLog(folder / "run.log")
        self._log.attach()
        self._metrics = AppendedFile(self.metrics_path)
        self._metrics.rewrite(lambda: _forget_after(self.metrics_path, at.step))
        self._reading = Outlet(f"reading {self.metrics_path}")
        # A run from its start has not even been verified: nothing of a try before it is shown.
        self._board = Board(self.tensorboard_path, first_step=at.step + 1 if at.step else 0)
        self._tags = Tags()
        self._curves = Outlet(str(self.curves_path))
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]:.2f}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(
            "train", total=at.total_steps, completed=at.step, epoch=at.epoch, told=""
        )
        self._progress.start()

    def say(self, text: str) -> None:
        """A line for the person who watches, and for who looks into run.log afterwards."""
        self._log.write(text)
        show(self.console, text)

    def note(self, text: str) -> None:
        """A line for run.log alone."""
        self._log.write(text)

    def advance(self, at: Position) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=at.step, epoch=at.epoch)

    def training(self, at: Position, reading: Mapping[str, float]) -> None:
        """One reading, named as at the head of this file; the console's line is arcface_torch's."""
        self._write(at, reading)
        self._board.scalars(self._tags.named(reading), at.step)
        told = f"{reading['images_per_s']:.0f} images/s  loss {reading['loss']:.3f}"
        self._progress.update(self._task, told=f"{told}  lr {reading['lr']:.4f}")
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

    def verification(self, at: Position, results: Mapping[str, Mapping[str, float]]) -> None:
        """Scores of each verification set."""
        self._write(at, {"verification": results})
        for name, scores in results.items():
            named = {f"verification_{name}/{score}": value for score, value in scores.items()}
            self._board.scalars(named, at.step)
            self.say(
                f"[{name}][{at.step}] Accuracy {scores['accuracy']:.4f} ± "
                f"{scores['accuracy_std']:.4f}   AUC {scores['auc']:.4f}   "
                f"TAR@FAR=1e-3 {scores['tar_at_far']:.4f}"
            )

    def verified(self, step: int) -> dict[str, dict[str, float]]:
        """The scores that metrics.jsonl has of a step; empty where it has none."""
        return {
            name: scores
            for line in self._read()
            if line["step"] == step
            for name, scores in line.get("verification", {}).items()
        }

    def go_back(self, at: Position) -> None:
        """Forget what was written of steps that come again."""
        self._metrics.rewrite(lambda: _forget_after(self.metrics_path, at.step))
        self._board.forget_from(at.step + 1)
        self.advance(at)

    def images(self, at: Position, images: torch.Tensor) -> None:
        """A grid of the first 32 of (B, 3, H, W) uint8 images, as the network sees them."""
        rows = min(4, len(images) // 8) or 1
        shown = images[: rows * 8].cpu()
        columns = len(shown) // rows
        _, channels, height, width = shown.shape
        grid = shown.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
        picture = grid.reshape(channels, rows * height, columns * width)
        self._board.image("data/images", picture, at.step)

    def text(self, name: str, text: str) -> None:
        """A text for TensorBoard, such as the resolved configuration."""
        self._board.text(name, text)

    def sum_up(self, checkpoint: Path | None) -> None:
        """Draw the curves; say how verification went and where everything lies."""
        from evaluation.plots import plot_curves  # a second that no start should take

        drawn = False
        try:
            drawn = self._curves.attempt(lambda: plot_curves(self.metrics_path, self.curves_path))
        except UserError as error:
            self.say(f"no curves: {error}")
        history: dict[str, list[float]] = {}
        for line in self._read():
            for name, scores in line.get("verification", {}).items():
                history.setdefault(name, []).append(scores["accuracy"])
        for name, accuracy in history.items():
            first = f"{accuracy[0]:.4f} → " if len(accuracy) > 1 else ""
            self.say(f"verification {name}: accuracy {first}{accuracy[-1]:.4f}")
        self.say(f"TensorBoard  tensorboard --logdir {self.tensorboard_path}")
        self.say(f"checkpoint   {checkpoint}")
        if drawn:
            self.say(f"curves       {self.curves_path}")
        self.say(f"log          {self._log.path}")

    def close(self) -> None:
        """End the progress bar; `say` and `sum_up` work on."""
        self._progress.stop()
        self._log.detach()

    def _read(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none where it cannot be read."""
        lines: list[dict[str, Any]] = []
        self._reading.attempt(lambda: lines.extend(_lines(self.metrics_path)))
        return lines

    def _write(self, at: Position, values: Mapping[str, Any]) -> None:
        line = {"step": at.step, "epoch": at.epoch, **values}
        # JSON has no NaN: the mean over no step is null.
        known = {key: None if value != value else value for key, value in line.items()}
        self._metrics.append(f"{json.dumps(known)}\n".encode())


def _forget_after(path: Path, step: int) -> None:
    """Drop what an interrupted run wrote past the checkpoint it resumes from, or wrote by half."""
    if not path.exists():
        return
    kept = [line for line in _lines(path) if line["step"] <= step] if step else []
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    unfinished.replace(path)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of metrics; raises OSError where it cannot be read."""
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
            if isinstance(line["step"], int):
                yield line
        except MALFORMED:
            continue  # written by half
