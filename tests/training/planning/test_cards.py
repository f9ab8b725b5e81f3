"""Cards are found by name, and a fleet is as quick as its slowest connection."""

from __future__ import annotations

import pytest

from facestream import UserError
from training.planning.cards import CARDS, Fleet, find_card


@pytest.mark.parametrize("name", ["t4", "T4", "RTX 3090", "rtx3090", "H100", "A100-80GB"])
def test_a_card_is_found_in_any_case(name):
    assert find_card(name) in CARDS.values()


def test_an_unknown_card_names_those_there_are_and_the_nearest():
    with pytest.raises(UserError) as raised:
        find_card("a100-81")
    text = str(raised.value)
    assert "'a100-81'" in text
    assert "did you mean a100" in text
    assert all(key in text for key in CARDS)


def test_peaks_are_of_dense_matrices_summed_in_float32():
    """Data sheets lead with twice as much: with zeros left out, or with sums of 16 bits."""
    assert CARDS["h100"].flops == 989e12
    assert CARDS["l40s"].flops == 362e12
    assert CARDS["3090"].flops == 71e12
    for card in CARDS.values():
        # Operations in the time of a byte: from a T4's to the newest.
        assert 50 < card.flops / card.bandwidth < 500, card.name


def test_a_ring_is_as_quick_as_its_slowest_connection():
    h100 = CARDS["h100"]
    assert Fleet(h100, 8).wire == h100.link == 450e9
    assert Fleet(h100, 9).wire == Fleet(h100, 9).network
    assert Fleet(CARDS["t4"], 16, network=100e9).wire == CARDS["t4"].host
    assert (Fleet(h100, 1024).machines, Fleet(h100, 1024).in_machine) == (128, 8)
    assert Fleet(h100, 3).in_machine == 3
