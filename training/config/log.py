"""Settings ``log.*``: lines, dashboards, pictures."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.checks import check, check_ranges
from training.setting_range import Count


@dataclass(frozen=True)
class LogConfig:
    """What a run reports while it goes on."""

    every: Count = 50  # steps between lines; nothing is read from the device in between
    also: tuple[str, ...] = ()  # wandb, mlflow: dashboards beside TensorBoard, where installed
    pictures: bool = True  # faces in TensorBoard and in report.html; false: none of anyone

    def __post_init__(self) -> None:
        check_ranges("log", self)
        known = set(self.also) <= {"wandb", "mlflow"}
        check(known, "log.also", self.also, "any of wandb and mlflow, as [wandb,mlflow]")
