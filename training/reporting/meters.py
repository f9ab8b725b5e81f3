"""Meters that stay on the device until they are read, and what their readings are called.

A reading is a flat mapping; its names do not change:

    loss, distillation,                   means over the steps since the last reading that were
    gradient_norm, embedding_norm         not skipped; NaN where all were, null as JSON
    skipped_steps, nonfinite_losses       how many steps changed nothing; had no finite loss
    skipped_in_a_row                      how many steps up to now changed nothing
    loss_scale                            for the next step; 1 where losses are not scaled
    memory_mb                             peak so far of this rank, in 10^6 bytes: what tensors
                                          took of the GPU, or on a CPU the whole process,
                                          pages of files aside
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

import torch

from training.planning.machine import own_peak
from training.reporting.stopwatch import Laps
from training.step.train_step import StepResult

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
    """Bytes: the most that tensors took of an accelerator, or this process of a CPU's memory."""
    if device.type == "cpu":
        return own_peak()
    return torch.get_device_module(device).max_memory_allocated(device)


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
