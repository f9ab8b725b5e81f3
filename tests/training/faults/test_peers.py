"""A collective that fails because a rank has died is explained by that death."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.clock import wait_until
from training.faults import peers
from training.faults.peers import Peers, _Process

CLOSED = RuntimeError("[/x/gloo/transport/tcp/pair.cc:547] Connection closed by peer")


@pytest.fixture
def ranks(world, monkeypatch) -> Peers:
    """Of three: this process, and two that are added."""
    monkeypatch.setattr(peers, "_WAIT", 0)
    monkeypatch.setattr(peers, "count_kills", lambda: 1)
    return Peers()


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process


def test_a_rank_that_has_ended_is_named(ranks, process):
    mine = ranks._mine
    ranks._all += [_Process(mine.machine, process.pid), _Process(mine.machine, mine.pid)]
    assert ranks.dead() == []
    assert ranks.explain(CLOSED) is None, "all of them live: the error's own trace is all there is"
    process.kill()
    state = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "Z")
    assert ranks.dead() == [1], "whoever started it has not asked for it yet"
    process.wait()
    assert ranks.dead() == [1]
    assert ranks.explain(CLOSED) == "rank 1 is gone: it ended by an error of its own, or was killed"


def test_the_memory_killer_is_named_where_it_has_been_at_work(ranks, process, monkeypatch):
    process.kill()
    process.wait()
    ranks._all.append(_Process(ranks._mine.machine, process.pid))
    monkeypatch.setattr(peers, "count_kills", lambda: 2)
    message = "rank 1 is gone, and the machine's memory killer has ended a process"
    assert ranks.explain(dist.DistNetworkError("reset")) == message


def test_a_rank_of_another_machine_cannot_be_named(ranks):
    ranks._all.append(_Process("elsewhere", 1))
    assert ranks.dead() == []
    assert "on another machine" in ranks.explain(CLOSED)


def test_other_errors_are_not_explained_by_it(ranks, process):
    process.kill()
    process.wait()
    ranks._all.append(_Process(ranks._mine.machine, process.pid))
    assert ranks.explain(RuntimeError("a bug of ours")) is None
    assert ranks.explain(ValueError("gloo")) is None
    hidden = ValueError("not saved")
    hidden.__cause__ = CLOSED
    assert "rank 1 is gone" in ranks.explain(hidden)
