"""What every dashboard shows of a run; one that cannot show a thing leaves it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class Dashboard(Protocol):
    """Shows a run. Names are GROUP/NAME."""

    def forget_from(self, step: int) -> None:
        """Take back what was said of this step and later ones, which come again."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """Every setting, "section.key" to its value."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves, by name."""

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """A picture, (H, W, 3) uint8."""

    def histogram(self, name: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """(N,) counts between (N + 1,) edges."""

    def finish(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """What a run that is finished has reached: its last points of these curves, by name."""

    def close(self) -> None:
        """Nothing more comes."""
