"""The order of identities: numbers as numbers, everything else as text."""

from __future__ import annotations

import pytest

from pipeline.name_order import order_of


@pytest.mark.parametrize(
    "in_order",
    [
        ["-3", "0", "2", "10", "11"],
        [2, "007", "7", 10],
        ["1", "10", "2", "x"],
        ["1", "10", "9" * 5000],  # which Python makes no number of
        [],
    ],
)
def test_names_are_in_the_order_of_their_numbers_or_of_their_text(in_order):
    backwards = in_order[::-1]
    assert sorted(backwards, key=order_of(backwards)) == in_order
