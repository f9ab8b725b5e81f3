"""What a step counts follows from peaks alone: a fleet of round figures shows each part."""

from __future__ import annotations

import pytest

from heads.cost import HeadCost
from training.planning.cards import Card, Fleet
from training.planning.speed import LAUNCH, UPDATE, Work, sent, step_seconds

CARD = Card("round", flops=1e12, bandwidth=1e9, memory=1e9, link=1e6, host=1e6, capability=(8, 0))
NOTHING = Work(0, 0, 0, 0, 0, HeadCost(0, 0, 0, 0, 0))


def seconds(*, ranks: int = 1, **work):
    return step_seconds(NOTHING._replace(**work), Fleet(CARD, ranks))


def test_work_takes_its_time_at_the_peaks():
    found = seconds(
        flops=2e12,
        bytes=3e9,
        launches=1000,
        updated=1_000_000,
        head=HeadCost(flops=10**12, bytes=10**9, launches=500, gathered=0, scattered=0),
    )
    assert found.backbone_products == 2
    assert found.backbone_memory == pytest.approx(3 + UPDATE * 1e6 / 1e9)
    assert (found.head_products, found.head_memory) == (1, 1)
    assert found.launches == pytest.approx(1500 * LAUNCH)
    assert found.total == pytest.approx(sum(found))
    assert found.gradients == found.head_exchange == found.fetch == 0


def test_one_rank_sends_nothing_and_many_send_their_parts_around():
    work = NOTHING._replace(averaged=1000, head=HeadCost(0, 0, 0, gathered=10, scattered=400))
    assert sent(work, 1) == (0, 0)
    assert sent(work, 4) == (2 * 3 / 4 * 1000, 3 * (10 + 400 / 4))


def test_gradients_hide_behind_backward_but_for_their_last_piece():
    alone = seconds(ranks=2, averaged=8_000_000)
    assert alone.gradients == pytest.approx(8)  # nothing to hide behind
    beside = seconds(ranks=2, averaged=8_000_000, bytes=3e9)
    assert beside.gradients == pytest.approx(8 - 2)  # two thirds of three seconds
    behind = seconds(ranks=2, averaged=8_000_000, bytes=300e9)
    assert behind.gradients == pytest.approx(1)  # an eighth


def test_the_heads_exchange_hides_behind_nothing():
    head = HeadCost(0, 0, 0, gathered=1_000_000, scattered=0)
    assert seconds(ranks=3, head=head, bytes=300e9).head_exchange == pytest.approx(2)


def test_fetched_centers_cost_what_is_longer_than_the_step():
    assert seconds(fetched=3_000_000).fetch == pytest.approx(3)
    assert seconds(fetched=3_000_000, bytes=1e9).fetch == pytest.approx(2)
    assert seconds(fetched=3_000_000, bytes=9e9).fetch == 0


def test_machines_meet_over_the_network():
    work = NOTHING._replace(averaged=1000)
    near, far = (
        step_seconds(work, Fleet(CARD, 4, a_machine=size, network=1e3)).gradients for size in (4, 2)
    )
    assert far == pytest.approx(1000 * near)
