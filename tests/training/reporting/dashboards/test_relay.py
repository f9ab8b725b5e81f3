"""What a dashboard on the network does, or fails to do, holds no run up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.clock import LIMIT
from training.reporting.dashboards import relay
from training.reporting.dashboards.relay import Relay


class Recording:
    """A dashboard that keeps what it gets; `fail` may raise at a call."""

    def __init__(self, fail: Callable[[str], None] = lambda name: None) -> None:
        self.said: list[tuple[Any, ...]] = []
        self._fail = fail

    def __getattr__(self, name: str) -> Callable[..., None]:
        def tell(*arguments: Any) -> None:
            self._fail(name)
            self.said.append((name, *arguments))

        return tell


def test_everything_is_handed_on_in_order() -> None:
    dashboard = Recording()
    relayed = Relay("wandb", lambda: dashboard)
    image, counts, edges = np.zeros((2, 2, 3), np.uint8), np.ones(2), np.arange(3.0)
    relayed.settings({"run.seed": 1})
    relayed.scalars({"loss/loss": 3.0}, 5)
    relayed.image("data/images", image, 5)
    relayed.histogram("verification_lfw/genuine", counts, edges, 5)
    relayed.forget_from(3)
    relayed.finish({"run.seed": 1}, {"verification_lfw/accuracy": 0.9})
    relayed.close()
    assert dashboard.said == [
        ("settings", {"run.seed": 1}),
        ("scalars", {"loss/loss": 3.0}, 5),
        ("image", "data/images", image, 5),
        ("histogram", "verification_lfw/genuine", counts, edges, 5),
        ("forget_from", 3),
        ("finish", {"run.seed": 1}, {"verification_lfw/accuracy": 0.9}),
        ("close",),
    ]


def test_a_failure_is_reported_once_and_what_comes_after_it_is_shown(caplog) -> None:
    def fail(name: str) -> None:
        if name == "scalars":
            raise ConnectionError("no route to host")

    dashboard = Recording(fail)
    relayed = Relay("mlflow", lambda: dashboard)
    for step in range(3):
        relayed.scalars({"loss/loss": 3.0}, step)
    relayed.forget_from(3)
    relayed.close()
    assert dashboard.said == [("forget_from", 3), ("close",)]
    [record] = caplog.records
    assert "mlflow did not take an entry (ConnectionError: no route to host)" in record.message


def test_one_that_cannot_be_opened_shows_nothing_and_says_so(caplog) -> None:
    def refuse() -> Recording:
        raise RuntimeError("not logged in")

    relayed = Relay("wandb", refuse)
    relayed.scalars({"loss/loss": 3.0}, 1)
    relayed.close()
    [record] = caplog.records
    assert "wandb shows nothing of this run (RuntimeError: not logged in)" in record.message


def test_one_that_hangs_keeps_nobody_waiting_and_the_end_says_what_is_missing(caplog) -> None:
    hanging, free = threading.Event(), threading.Event()

    def hang(name: str) -> None:
        hanging.set()
        free.wait(LIMIT)

    relayed = Relay("mlflow", lambda: Recording(hang), patience=0.01)
    for step in range(100):
        relayed.scalars({"loss/loss": 3.0}, step)  # returns at once
    assert hanging.wait(LIMIT)
    relayed.close()
    free.set()
    assert "mlflow has not taken everything within 0 s" in caplog.text


def test_what_waits_is_bounded(caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MOST_WAITING", 3)
    free = threading.Event()
    relayed = Relay("mlflow", lambda: Recording(lambda name: free.wait(LIMIT) and None))
    for step in range(10):
        relayed.scalars({"loss/loss": 3.0}, step)
    assert "mlflow takes no more, 3 entries wait already" in caplog.text
    free.set()
