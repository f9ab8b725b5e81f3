"""Rows kept away from the device: what two samples share, what is fetched, what goes wrong."""

from __future__ import annotations

import traceback

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heads.rows.fetcher import RowFetcher
from heads.rows.overlap import SortedRows, gather, overlap, scatter
from heads.rows.placement import Placement
from heads.rows.working_set import WorkingSet
from heads.sampling import (
    AllClasses,
    BatchClasses,
    GroupClasses,
    RandomClasses,
    Sample,
    Sampling,
    Shard,
)
from tests.recorded_graph import RecordedGraphs

CPU = torch.device("cpu")
ROWS = st.lists(st.integers(0, 30), unique=True).map(lambda rows: torch.tensor(rows).long())


@given(ROWS, ROWS)
def test_two_samples_meet_where_they_have_the_same_row(one, other):
    first, second = overlap(SortedRows.of(one), SortedRows.of(other))
    assert torch.equal(one[first], other[second])
    assert set(one[first].tolist()) == set(one.tolist()) & set(other.tolist())


@pytest.mark.parametrize("width", [1, 3, 4, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64])
def test_rows_move_as_they_are_in_every_dtype(dtype, width):
    matrix = torch.randn(9, width).to(dtype)
    matrix.view(torch.uint8)[4] = 0xFF  # NaN keeps its bits, too
    rows, before = torch.tensor([7, 4, 0]), matrix.clone()
    found = torch.empty(3, width, dtype=dtype)
    gather(matrix, rows, found)
    assert torch.equal(found.view(torch.uint8), matrix.view(torch.uint8)[rows])
    scatter(matrix, rows, found, torch.tensor([2, 1, 0]))
    before.view(torch.uint8)[rows] = before.view(torch.uint8)[rows.flip(0)]
    assert torch.equal(matrix.view(torch.uint8), before.view(torch.uint8))


class Fetching:
    """A fetcher over a matrix whose steps double the rows that the labels name."""

    def __init__(self, *, depth: int = 2, fixed: bool = False) -> None:
        self.matrix, self.drawn, self.step = torch.arange(20.0).view(10, 2), [], 0
        self.working_set = WorkingSet(CPU, fixed=fixed)
        self.fetcher = RowFetcher(
            {"centers": self.matrix},
            self.draw,
            placement=Placement("host", None, CPU),
            working_set=self.working_set,
            depth=depth,
        )

    def draw(self, step: int, labels: Tensor, sampling: Sampling) -> Sample:
        self.drawn.append(step)
        assert labels.min() >= 0, "a label that no test draws"
        return Sample(labels, torch.arange(len(labels)))

    def announce(self, rows: list[int], ahead: int) -> None:
        step = torch.tensor(self.step)
        self.fetcher.announce(torch.tensor(rows), AllClasses(), step=step, ahead=ahead)

    def double(self, rows: list[int]) -> None:
        self.fetcher.fetch(torch.tensor(rows), AllClasses(), step=self.step)
        assert torch.equal(self.fetcher.sample.rows, torch.tensor(rows))
        self.fetcher.rows["centers"].mul_(2)
        self.fetcher.write_back()
        self.step += 1

    def doubled(self) -> list[int]:
        """How often each row was."""
        self.fetcher.settle()
        return (self.matrix / torch.arange(20.0).view(10, 2))[:, 1].log2().int().tolist()


@pytest.mark.parametrize("fixed", [False, True])
def test_rows_fetched_ahead_have_the_changes_of_the_steps_in_between(fixed, monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: RecordedGraphs())
    one = Fetching(depth=2, fixed=fixed)
    steps = [[1, 2, 3], [3, 2, 9], [2, 4, 3], [9, 2, 0], [2, 5, 6]]
    for ahead in (0, 1, 2):
        one.announce(steps[ahead], ahead)
    for number, rows in enumerate(steps):
        if number + 2 < len(steps):
            one.announce(steps[number + 2], 2)
        one.double(rows)
    assert one.doubled() == [1, 1, 5, 3, 1, 1, 1, 0, 0, 2]
    assert one.drawn == [0, 1, 2, 3, 4], "each once, ahead of its step"


def test_a_fixed_working_set_stays_where_it_is(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: RecordedGraphs())
    one = Fetching(fixed=True)
    one.double([1, 2])
    place = one.fetcher.rows["centers"].data_ptr()
    one.double([2, 3])
    assert one.fetcher.rows["centers"].data_ptr() == place
    one.double([2, 3, 4])  # more rows than there was room for
    assert one.doubled() == [0, 1, 3, 2, 1, 0, 0, 0, 0, 0]


def test_wrong_announcements_only_cost_time():
    one = Fetching()
    one.announce([5, 6], 0)
    one.announce([1, 1], 1)
    one.announce([3, 4], 3)  # beyond the depth: never fetched
    for rows in ([1, 2], [2, 3], [3, 4]):
        one.double(rows)
    assert one.doubled() == [0, 1, 2, 2, 1, 0, 0, 0, 0, 0]
    assert one.drawn.count(2) == 1


def test_an_announcement_can_be_taken_back():
    one = Fetching()
    one.announce([1, 2], 0)
    one.announce([3, 4], 0)
    one.announce([3, 4], 0)  # said twice, fetched once
    one.double([3, 4])
    assert one.doubled()[3:5] == [1, 1]
    assert one.drawn.count(0) <= 2


def test_what_others_write_is_fetched_again():
    """A state that is loaded, centers that a warm start puts in place."""
    one = Fetching()
    one.double([1, 2])
    one.announce([1, 3], 0)
    one.fetcher.settle()
    one.matrix[1] = 8.0
    one.double([1, 3])
    one.fetcher.settle()
    assert one.matrix[1].tolist() == [16.0, 16.0]


def test_a_forward_without_its_step_leaves_no_trace():
    one = Fetching()
    for rows in ([1, 2], [1, 4]):
        one.fetcher.fetch(torch.tensor(rows), AllClasses(), step=0)
        one.fetcher.rows["centers"].mul_(3)
    one.double([1, 4])
    assert one.doubled() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("announced", [False, True])
def test_errors_of_the_thread_reach_the_caller_with_their_trace(announced):
    one = Fetching()
    one.double([1, 2])
    if announced:
        one.announce([-1, 3], 0)
    with pytest.raises(AssertionError, match="no test draws") as raised:
        one.double([-1, 3])
    assert any(frame.name == "draw" for frame in traceback.extract_tb(raised.value.__traceback__))


def test_an_error_of_writing_back_ends_the_next_step(monkeypatch):
    one = Fetching()
    one.double([1, 2])
    one.fetcher.settle()

    def fail(*arguments):
        raise OSError("the disk is gone")

    monkeypatch.setattr("heads.rows.fetcher.scatter", fail)
    one.double([1, 2])
    with pytest.raises(OSError, match="the disk is gone"):
        one.fetcher.settle()


@pytest.mark.parametrize(
    "sampling", [AllClasses(), RandomClasses(0.3), BatchClasses(), GroupClasses(2)], ids=str
)
def test_a_rank_without_classes_fetches_none(sampling):
    nothing = Shard(num_classes=2, first_class=2, num_local=0)
    fetcher = RowFetcher(
        {"centers": torch.zeros(0, 8)},
        lambda step, labels, _: sampling.draw(labels, nothing, torch.tensor(step)),
        placement=Placement("host", None, CPU),
        working_set=WorkingSet(CPU, fixed=False),
        depth=2,
    )
    labels = torch.tensor([0, 1])
    for step in range(3):
        fetcher.announce(labels, sampling, step=torch.tensor(step), ahead=1)
        fetcher.fetch(labels, sampling, step=step)
        assert fetcher.rows["centers"].shape == (0, 8)
        fetcher.write_back()
    fetcher.settle()
