"""A dashboard on the network: served by a thread, so that a run neither waits for it nor ends."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from training.reporting.dashboards.dashboard import Dashboard

MOST_WAITING = 10_000  # calls
PATIENCE = 20.0  # seconds that the end of a run waits for what is not there yet


class Relay:
    """Hands on what a Dashboard gets, in order; is one itself.

    Its first failure is a warning, and so is an end at which not everything had got through. Where
    it cannot be opened it shows nothing.

    Args:
        name: for people.
        open_dashboard: called in the thread; may raise anything.
        patience: seconds that `close` waits.
    """

    def __init__(
        self, name: str, open_dashboard: Callable[[], Dashboard], *, patience: float = PATIENCE
    ) -> None:
        self._name, self._open, self._patience = name, open_dashboard, patience
        self._calls: queue.Queue[Callable[[Dashboard], None] | None] = queue.Queue(MOST_WAITING)
        self._warned = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def forget_from(self, step: int) -> None:
        """As a Dashboard's."""
        self._hand(lambda dashboard: dashboard.forget_from(step))

    def settings(self, values: Mapping[str, Any]) -> None:
        """As a Dashboard's."""
        self._hand(lambda dashboard: dashboard.settings(values))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """As a Dashboard's."""
        self._hand(lambda dashboard: dashboard.scalars(values, step))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """As a Dashboard's."""
        self._hand(lambda dashboard: dashboard.image(name, image, step))

    def histogram(self, name: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """As a Dashboard's."""
        self._hand(lambda dashboard: dashboard.histogram(name, counts, edges, step))

    def finish(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """As a Dashboard's."""
        self._hand(lambda dashboard: dashboard.finish(settings, scores))

    def close(self) -> None:
        """Wait for what is under way, as long as the patience lasts."""
        self._hand(lambda dashboard: dashboard.close())
        self._hand(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            logging.warning(
                "%s has not taken everything within %.0f s: what is missing there is in "
                "TensorBoard and metrics.jsonl",
                self._name,
                self._patience,
            )

    def _hand(self, call: Callable[[Dashboard], None] | None) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._warn(f"takes no more, {MOST_WAITING:,} entries wait already")

    def _work(self) -> None:
        try:
            dashboard = self._open()
        except Exception as error:  # whatever another package and its network may raise
            self._warn(f"shows nothing of this run ({type(error).__name__}: {error})")
            while self._calls.get() is not None:
                pass
            return
        while (call := self._calls.get()) is not None:
            try:
                call(dashboard)
            except Exception as error:
                self._warn(f"did not take an entry ({type(error).__name__}: {error})")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            logging.warning("%s %s. The run goes on; this is not said again", self._name, what)
