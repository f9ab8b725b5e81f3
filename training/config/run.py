"""Settings ``run.*``: where a run lives, how long it goes on, what happens when it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from training.config.checks import check, check_ranges
from training.setting_range import Amount, Count, CountOrZero, Range


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and how long it goes on."""

    output: str = "runs/default"  # folder for checkpoints, metrics and TensorBoard
    epochs: Annotated[int, Range(1, 10**6)] = 20  # how often the data is seen
    seed: Annotated[int, Range(0, (1 << 63) - 1)] = 0  # of the first weights and of all draws
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    resume: str = "auto"  # never: refuse a folder that holds a run; PATH: where a new run begins
    init_from: str = ""  # weights a new run starts from: checkpoint, run, .pth, .safetensors, .onnx
    deterministic: bool = False  # the same losses to the bit, run after run; slower on GPUs
    save_every: Count = 1  # epochs between checkpoints; the last epoch is always saved
    save_steps: CountOrZero = 0  # steps between checkpoints inside an epoch; 0: none
    keep: Count = 2  # newest checkpoints that stay, two at least; so does the best one verified
    max_hours: Amount = 0.0  # then save and stop, leaving some for the saving; 0: no limit
    hang_minutes: Amount = 10.0  # without a step, and the run ends saying where it hangs; 0: never
    max_nonfinite: CountOrZero = 50  # skipped steps in a row, then back to a checkpoint; 0: any

    def __post_init__(self) -> None:
        check_ranges("run", self)
        check(bool(self.resume), "run.resume", self.resume, "auto, never or a folder")
        check(bool(self.output), "run.output", self.output, "a folder")
