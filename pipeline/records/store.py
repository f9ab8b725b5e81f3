"""What holds the images of a data set, whatever its form: the face that all forms have.

A set is a table of RECORDs (scan.py) and a Store. Order, labels and what is left out are worked out
from the table alone, so they are the same for every form; only a Store knows where the bytes are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np


class Store(Protocol):
    """Reads the images of a set; any number of threads may use it at once.

    Attributes:
        fingerprint: a digest that depends on the content alone and tells two sets apart.
    """

    fingerprint: str

    def sources(self, records: np.ndarray) -> list[Callable[[], bytes]]:
        """For each of (N,) RECORD, what reads its encoded image.

        It raises RecordError, with the reason, where that cannot be read: one image's fault.
        """

    def place(self, record: np.void) -> str:
        """Where the image of a RECORD is, for messages."""

    def name(self, record: np.void) -> str:
        """What files beside the set call the image of a RECORD; tools/predict.py writes it, too."""

    def will_need(self, offset: int, length: int) -> None:
        """Announce a read of bytes, so that they are on their way from a slow disk."""

    def check_unchanged(self) -> None:
        """Raise RecordError where the whole set was cut off, removed or overwritten meanwhile."""
