"""Axes: where values stand, and which are marked."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.report.axis import Axis, log_axis, share_axis


@pytest.mark.parametrize(
    ("axis", "texts"),
    [
        (Axis("", 0.98, 1.0, percent=True), ["98.0%", "98.5%", "99.0%", "99.5%", "100.0%"]),
        (Axis("", 0.0, 1.0, percent=True), ["0%", "20%", "40%", "60%", "80%", "100%"]),
        (Axis("", -0.3, 1.0), ["0.0", "0.5", "1.0"]),
        (Axis("", 1e-4, 1, log=True), ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"]),
        (Axis("", 1, 2, whole=True), ["1", "2"]),
        (Axis("", 1, 20, whole=True), ["5", "10", "15", "20"]),
    ],
)
def test_ticks_are_round(axis, texts):
    assert [text for _, text in axis.ticks()] == texts


def test_zero_stands_at_the_end_of_a_logarithmic_axis():
    axis = Axis("", 1e-3, 1, log=True)
    assert [axis.place(value) for value in (0, 1e-9, 1e-3, 1, 10)] == [0, 0, 0, 1, 1]
    assert axis.place(10**-1.5) == pytest.approx(0.5)


SHARES = st.lists(st.floats(0, 1) | st.just(math.nan), max_size=5)


@given(SHARES, st.booleans())
def test_axes_hold_what_they_are_made_of_and_have_ticks(values, to_one):
    for axis in (share_axis("", values, to_one=to_one), log_axis("", values, to_one=to_one)):
        assert axis.low < axis.high
        assert 2 <= len(axis.ticks()) <= 13
        for value in values:
            if value > 1e-9:
                assert axis.low * (1 - 1e-9) <= value <= axis.high * (1 + 1e-9) or axis.log
