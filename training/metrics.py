"""What a run tells: meters that stay on the device, and the places their readings go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from training.step import StepResult


class Meters:
    """Means of what steps return, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        # steps, skipped steps, and the sums over steps that were not skipped of
        # loss, gradient norm and embedding norm
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)

    def add(self, result: StepResult) -> None:
        values = torch.stack([result.loss, result.gradient_norm, result.embedding_norm]).double()
        values = torch.where(result.skipped, torch.zeros_like(values), values)
        skipped = result.skipped.double().reshape(1)
        self._sums += torch.cat([torch.ones_like(skipped), skipped, values])

    def read(self) -> dict[str, float]:
        """Means since the last reading, and how many steps were skipped; waits for the device."""
        steps, skipped, *sums = self._sums.tolist()
        self._sums.zero_()
        counted = max(steps - skipped, 1.0)
        names = ("loss", "gradient_norm", "embedding_norm")
        means = {name: total / counted for name, total in zip(names, sums)}
        if skipped == steps:
            means = dict.fromkeys(names, float("nan"))
        return means | {"skipped_steps": skipped}


@dataclass(frozen=True)
class Position:
    """How far a run is."""

    step: int
    epoch: float
    total_steps: int


class Reporter:
    """The main rank's voice: console with a progress bar, TensorBoard, and JSON lines."""

    def __init__(self, folder: Path, *, at: Position) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.metrics_path = folder / "metrics.jsonl"
        self.tensorboard_path = folder / "tensorboard"
        _forget_after(self.metrics_path, at.step)
        self._jsonl = self.metrics_path.open("a")
        self._board = SummaryWriter(str(self.tensorboard_path), purge_step=at.step + 1)
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
        """A line for the person who watches."""
        self.console.print(text, markup=False)

    def advance(self, at: Position) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=at.step, epoch=at.epoch)

    def training(
        self, at: Position, scalars: Mapping[str, float], seconds: Mapping[str, float]
    ) -> None:
        """One reading: `scalars` has loss, lr, images_per_s and more; `seconds` a step by phase."""
        total = sum(seconds.values()) or 1.0
        times = {f"seconds_{phase}": passed for phase, passed in seconds.items()}
        self._write(at, {**scalars, **times})
        for name, value in {**scalars, **times}.items():
            self._board.add_scalar(f"train/{name}", value, at.step)
        told = f"{scalars['images_per_s']:.0f} images/s  loss {scalars['loss']:.3f}"
        self._progress.update(self._task, told=f"{told}  lr {scalars['lr']:.4f}")
        self.say(
            f"Speed {scalars['images_per_s']:.2f} samples/sec   Loss {scalars['loss']:.4f}   "
            f"LearningRate {scalars['lr']:.6f}   Epoch: {at.epoch:.2f}   "
            f"Global Step: {at.step}/{at.total_steps}   "
            f"Required: {scalars['seconds_left'] / 3600:.2f} hours   "
            + " ".join(f"{phase} {passed / total:.0%}" for phase, passed in seconds.items())
        )

    def verification(self, at: Position, results: Mapping[str, Mapping[str, float]]) -> None:
        """Scores of each verification set."""
        self._write(at, {"verification": results})
        for name, scores in results.items():
            for score, value in scores.items():
                self._board.add_scalar(f"verification_{name}/{score}", value, at.step)
            self.say(
                f"[{name}][{at.step}] Accuracy {scores['accuracy']:.4f} ± "
                f"{scores['accuracy_std']:.4f}   AUC {scores['auc']:.4f}   "
                f"TAR@FAR=1e-3 {scores['tar_at_far']:.4f}"
            )

    def images(self, at: Position, images: torch.Tensor) -> None:
        """A grid of the first 32 of (B, 3, H, W) uint8 images, as the network sees them."""
        rows = min(4, len(images) // 8) or 1
        shown = images[: rows * 8].cpu()
        columns = len(shown) // rows
        _, channels, height, width = shown.shape
        grid = shown.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
        self._board.add_image(
            "train/images", grid.reshape(channels, rows * height, columns * width), at.step
        )

    def text(self, name: str, text: str) -> None:
        """A text for TensorBoard, such as the resolved configuration."""
        self._board.add_text(name, text, 0)

    def close(self) -> None:
        self._progress.stop()
        self._board.close()
        self._jsonl.close()

    def _write(self, at: Position, values: Mapping[str, Any]) -> None:
        self._jsonl.write(json.dumps({"step": at.step, "epoch": at.epoch, **values}) + "\n")
        self._jsonl.flush()


def _forget_after(path: Path, step: int) -> None:
    """Drop what an interrupted run wrote past the checkpoint it resumes from, or wrote by half."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines() if step else ():
        try:
            told_at = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if told_at <= step:
            kept.append(f"{line}\n")
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("".join(kept))
    unfinished.replace(path)
