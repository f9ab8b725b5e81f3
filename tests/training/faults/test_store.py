"""The ranks' store is rank 0's own, found by all others wherever torchrun's has an old address."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.clock import wait_until
from training.faults import store
from training.faults.store import serve_store


@pytest.fixture(autouse=True)
def _one_machine(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)


def test_it_outlives_where_the_ranks_met():
    meeting = dist.HashStore()
    first = serve_store(meeting, rank=0, world_size=2)
    second = serve_store(meeting, rank=1, world_size=2)
    del meeting
    second.set("word", "heard")
    assert first.get("word") == b"heard"


@pytest.mark.slow
def test_the_address_of_a_dead_rank_is_passed_over(monkeypatch):
    """As torchrun's store still has it when ranks of several machines start again."""
    tries, client = [], dist.TCPStore
    monkeypatch.setattr(store, "_TRY", timedelta(seconds=1))
    monkeypatch.setattr(store.dist, "TCPStore", lambda *a, **k: tries.append(a) or client(*a, **k))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        dead = free.getsockname()[1]
    meeting, found = dist.HashStore(), []
    meeting.set("the ranks' store", f"localhost {dead}")
    thread = threading.Thread(
        target=lambda: found.append(serve_store(meeting, rank=1, world_size=2))
    )
    thread.start()
    wait_until(lambda: tries)
    served = serve_store(meeting, rank=0, world_size=2)
    thread.join()
    served.set("word", "heard")
    assert found[0].get("word") == b"heard"
    assert tries[0][1] == dead


def test_other_machines_come_by_the_way_that_they_know(monkeypatch):
    with socket.socket() as launcher:
        launcher.bind(("localhost", 0))
        launcher.listen()
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(launcher.getsockname()[1]))
        assert store._own_address() == "localhost", "rank 0 is where all have met"
