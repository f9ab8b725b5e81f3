"""Announcements: a stage ahead, near records as one stretch, and never in the stream's way."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.collection import Collection
from pipeline.dali_loader import Loader
from pipeline.order import BlockOrder, GlobalOrder
from pipeline.read_ahead import read_ahead, stretches
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from tests.clock import LIMIT, wait_until

RECORDS = 600


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    with RecordWriter(folder / "train.rec") as writer:
        for key in range(RECORDS):
            writer.write(pack_image(bytes(20_000), float(key), key))
    return Collection.of(open_index(folder))


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**5)), min_size=1))
def test_stretches_cover_every_span_and_no_gap_beyond_what_a_request_costs(spans):
    offset, length = np.array(spans).T
    found = list(zip(*stretches(offset, length)))
    for at, size in spans:
        assert any(begin <= at and at + size <= begin + long for begin, long in found)
    for (begin, long), (after, _) in itertools.pairwise(found):
        assert after - (begin + long) > 64 << 10
    assert sum(long for _, long in found) <= sum(length) + (64 << 10) * (len(spans) - len(found))


def test_each_stage_is_announced_once_and_before_its_first_step(records):
    asked = []

    def records_of(stage: int) -> np.ndarray:
        asked.append(stage)
        return np.arange(3)

    steps = read_ahead(
        range(5, 40),
        stage_of=lambda at: at // 10,
        records_of=records_of,
        soon=lambda at: asked.append(f"from {at} on") or np.arange(3),
        collection=records,
    )
    with closing(steps):
        for step in steps:
            wait_until(lambda stage=step // 10 + 1: stage in asked, seen=lambda: asked)
            assert asked == ["from 5 on", *range(step // 10 + 2)]


def test_a_disk_that_takes_its_time_holds_neither_steps_nor_the_end_up(records, monkeypatch):
    """The disk is at its first request until the stream waits for it, and gets no other."""
    begun, over, requests = threading.Event(), threading.Event(), []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, **options: bool) -> None:
            over.set()
            super().shutdown(**options)

    def slow(*request: int) -> None:
        requests.append(request)
        begun.set()
        assert over.wait(LIMIT)

    monkeypatch.setattr("pipeline.read_ahead.ThreadPoolExecutor", Pool)
    monkeypatch.setattr(records.indexes[0].file, "will_need", slow)
    steps = read_ahead(
        itertools.count(),
        stage_of=lambda at: at,
        records_of=lambda _: np.arange(0, RECORDS, 7),
        soon=lambda _: np.arange(3),
        collection=records,
    )
    with closing(steps):
        assert list(itertools.islice(steps, 5)) == [0, 1, 2, 3, 4]
        assert begun.wait(LIMIT)
    assert len(requests) == 1


def announced(loader: Loader, stage: int) -> set[int]:
    return set(loader._records_of(stage).tolist())


@pytest.mark.parametrize("world_size", [1, 2])
def test_stages_hold_the_records_of_their_steps_and_each_one_once(records, world_size):
    order = BlockOrder(RECORDS, seed=3, block=10, window=12)
    loaders = [
        Loader(
            records,
            order=order,
            global_batch=6,
            rank=rank,
            world_size=world_size,
            device=torch.device("cpu"),
        )
        for rank in range(world_size)
    ]
    stages = range(2 * loaders[0]._epoch_stages)
    for stage in stages:
        steps = [at for at in range(200) if loaders[0]._stage_of(at) == stage]
        used = {int(i) for loader in loaders for at in steps for i in loader._records(at)[0]}
        assert set().union(*(announced(loader, stage) for loader in loaders)) == used
        assert sum(len(loader._records_of(stage)) for loader in loaders) == len(used)


def test_blocks_are_announced_as_few_stretches_and_a_permutation_as_many(records):
    def requests(order) -> int:
        loader = Loader(records, order=order, global_batch=6, device=torch.device("cpu"))
        _, offset, length = records.spans(loader._records_of(0))
        return len(stretches(offset, length)[0]) / len(offset)

    assert requests(BlockOrder(RECORDS, seed=3, block=20, window=5)) < 0.08
    assert requests(GlobalOrder(RECORDS, seed=3)) > 0.3


def test_a_file_system_that_takes_no_announcements_is_reported_once(records, monkeypatch, caplog):
    def refused(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(records.indexes[0].file, "will_need", refused)
    steps = read_ahead(
        itertools.count(),
        stage_of=lambda at: at,
        records_of=lambda _: np.arange(9),
        soon=lambda _: np.arange(3),
        collection=records,
    )
    with closing(steps):
        wait_until(lambda: next(steps) >= 0 and "announced" in caplog.text)
        for _ in range(5):
            next(steps)
    assert caplog.text.count("not announced to the disk any more: [Errno 22]") == 1
