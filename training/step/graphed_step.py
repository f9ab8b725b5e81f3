"""The whole step as one CUDA graph: for batches so small that launching kernels takes longer."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from heads.graph import Captured, can_record
from training.config import ConfigError
from training.step.streams import side_stream
from training.step.train_step import Lap, StepResult, TrainStep

# Steps before the recording; torch asks for eleven with DistributedDataParallel.
_WARM_UP = 11


class GraphedStep:
    """A TrainStep that is recorded (captured) as a CUDA graph after its first steps, then replayed.

    The first steps train as all do; they let libraries choose their algorithms and allocate. The
    head must have been built with cuda_graph=False, for graphs do not nest. The result of a step
    is written again by the next one.

    Where it is known that nothing can be recorded, steps run as they are and a warning says why.

    Raises ConfigError, on every rank, where the recording fails.
    """

    def __init__(self, step: TrainStep, device: torch.device) -> None:
        self._step, self._device = step, device
        self._module = torch.get_device_module(device)
        self.obstacle = _obstacle(step, device)
        if self.obstacle:
            logging.warning("step.cuda_graph=full: steps run without a graph: %s", self.obstacle)
        self.forget()

    def forget(self) -> None:
        """Let go of the recording: before ranks part, or when tensors were replaced."""
        self._captured: Captured | None = None
        self._lr: Tensor | None = None
        self._eager = 0  # steps since the head was set to compute otherwise
        self._computed = self._computes()

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
        lap: Lap,
        targets: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> StepResult:
        """As TrainStep; every batch must be alike, and `lr` the same tensor each time."""
        if self.obstacle:
            return self._step(images, labels, lr, lap, targets, columns)
        if self._computed != self._computes():
            self.forget()
        if self._eager < _WARM_UP:
            self._eager += 1
            return self._aside(images, labels, lr, lap, targets, columns)
        given = {"images": images, "labels": labels, "targets": targets, "columns": columns}
        there = {name: tensor for name, tensor in given.items() if tensor is not None}
        batch = tuple(there.values())
        if self._captured is None:
            self._record(lr, tuple(there), *batch)
        assert self._captured is not None
        assert lr is self._lr, "the recorded step reads this tensor, and no other"
        result = self._captured(*batch)
        lap("step")
        return result

    def _computes(self) -> tuple[float, float | None]:
        """What of the head changes from epoch to epoch."""
        return self._step.head.sample_rate, self._step.head.expectation_margin

    def _aside(self, *arguments: Any) -> StepResult:
        """A plain step on the side stream, for the default one cannot be recorded."""
        before, stream = self._module.current_stream(), side_stream(self._device)
        stream.wait_stream(before)
        with self._module.stream(stream):
            result = self._step(*arguments)
        before.wait_stream(stream)
        return result

    def _record(self, lr: Tensor, names: tuple[str, ...], *batch: Tensor) -> None:
        ranks = self._step.head.ranks
        captured = Captured(
            device=self._device, agree=lambda held: ranks.all_agree(held, self._device)
        )

        def step(*batch: Tensor) -> StepResult:
            return self._step(lr=lr, lap=_no_lap, **dict(zip(names, batch)))

        obstacle = captured.record(step, *batch, warm_up=0, stream=side_stream(self._device))
        if obstacle:
            raise ConfigError(
                f"step.cuda_graph=full: recording the step failed ({obstacle}), and leaves "
                "optimizer and ranks in the middle of it; set step.cuda_graph=head"
            )
        self._captured, self._lr = captured, lr


def _obstacle(step: TrainStep, device: torch.device) -> str | None:
    """What is known beforehand to be in the way."""
    if not can_record(device):
        return f"there are none on a {device.type}"
    return step.head.ranks.graph_obstacle(device)


def _no_lap(phase: str) -> None:
    """Inside a graph there is no clock."""
