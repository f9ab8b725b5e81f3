"""What a checkpoint calls its tensors: a section, a dot, and what its owner calls them."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

BACKBONE, OPTIMIZER, HEAD, SCALER = "backbone", "optimizer", "head", "scaler"
CENTERS, VELOCITY = f"{HEAD}.centers", f"{HEAD}.velocity"
# Beside the values of rows that are kept in float8.
SCALES = {CENTERS: f"{HEAD}.center_scales", VELOCITY: f"{HEAD}.velocity_scales"}
MOMENTUM = (f"{OPTIMIZER}.state.", ".momentum_buffer")  # round the name of a parameter


def under(section: str, names: dict[str, T]) -> dict[str, T]:
    """Those of a section, by what their owner calls them."""
    return {
        name.removeprefix(f"{section}."): value
        for name, value in names.items()
        if name.startswith(f"{section}.")
    }
