"""map_ahead is map, only earlier."""

import threading

import pytest

from pipeline.ahead import map_ahead
from tests.clock import LIMIT


def test_results_come_in_order_whoever_is_ready_first():
    second_done = threading.Event()

    def work(k: int) -> int:
        if k == 0:
            assert second_done.wait(LIMIT)
        else:
            second_done.set()
        return k * k

    assert list(map_ahead(work, range(50), workers=2)) == [k * k for k in range(50)]


def test_only_a_few_items_are_taken_ahead_of_the_reader():
    taken = []
    results = map_ahead(lambda k: k, (taken.append(k) or k for k in range(10**9)), workers=2)
    assert next(results) == 0
    assert len(taken) <= 9
    results.close()


def test_what_the_work_raises_is_raised_in_its_place():
    results = map_ahead(lambda k: 1 // (3 - k), range(6), workers=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
