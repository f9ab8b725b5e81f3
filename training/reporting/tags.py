"""Under which names dashboards show a reading: groups of curves, none of which is flat."""

from __future__ import annotations

from collections.abc import Mapping

_GROUPS = {
    "loss": "loss",
    "distillation": "loss",
    "lr": "steps",
    "gradient_norm": "steps",
    "embedding_norm": "steps",
    "skipped_steps": "steps",
    "nonfinite_losses": "steps",
    "skipped_in_a_row": "steps",
    "loss_scale": "steps",
    "data_wait_fraction": "data",
    "seconds_data": "data",
    "share_data": "data",
    "memory_mb": "memory",
}  # else "speed"
# What a reading says where there is nothing to say: no teacher, no scaler, no fault.
_NOTHING = {
    "distillation": 0.0,
    "skipped_steps": 0.0,
    "nonfinite_losses": 0.0,
    "skipped_in_a_row": 0.0,
    "loss_scale": 1.0,
    "host_bound_fraction": 0.0,
}


def group_of(name: str) -> str:
    """Of what is shown of a test set."""
    return f"verification_{name}"


def of_set(name: str, scores: Mapping[str, float]) -> dict[str, float]:
    """The scores of a test set as GROUP/NAME."""
    return {f"{group_of(name)}/{score}": value for score, value in scores.items()}


class Tags:
    """Names a run's readings for dashboards."""

    def __init__(self) -> None:
        self._silent = dict(_NOTHING)

    def named(self, reading: Mapping[str, float]) -> dict[str, float]:
        """The reading as GROUP/NAME; without what has said nothing so far."""
        for name, value in reading.items():
            if name in self._silent and value != self._silent[name]:
                del self._silent[name]
        return {
            f"{_GROUPS.get(name, 'speed')}/{name}": value
            for name, value in reading.items()
            if name not in self._silent
        }
