"""How figures are written: percent or not, digits, intervals."""

from __future__ import annotations

import pytest

from evaluation.report.figure_text import figure_text, interval_words, plain, title
from evaluation.result import Figure


@pytest.mark.parametrize(
    ("name", "figure", "text"),
    [
        ("accuracy", Figure(0.9937, 0.989, 0.997), "99.37 [98.9, 99.7]"),
        ("accuracy", Figure(0.99931, 0.9991, 0.9995), "99.93 [99.91, 99.95]"),
        ("tar@far=0.001", Figure(0.9, None, None), "90.00"),
        ("fmr at the common threshold", Figure(1.2e-6), "0.00012"),
        ("eer", Figure(0.0, 0.0, 0.0), "0.00 [0.00, 0.00]"),
        ("mean feature norm", Figure(21.734, 21.5, 21.9), "21.73 [21.50, 21.90]"),
        ("d′", Figure(4.512), "4.51"),
        ("threshold@far=0.001", Figure(0.3), "0.300"),
        ("threshold@far=0.001", Figure(0.93642, 0.9311, 0.9442), "0.936 [0.931, 0.944]"),
        ("norm", Figure(80836960.0, 80e6, 81e6), "80,836,960 [80,000,000, 81,000,000]"),
        ("d-prime", Figure(0.84, 0.7, 1.02), "0.84 [0.70, 1.02]"),
        ("accuracy", Figure(None, 0.1, 0.2), "–"),
        ("accuracy", Figure(float("nan")), "–"),
        ("comparisons", Figure(1234567.0), "1,234,567"),
    ],
)
def test_figures(name, figure, text):
    assert figure_text(name, figure) == text


def test_titles_have_the_unit():
    assert title("accuracy") == "accuracy, %"
    assert title("mean feature norm") == "mean feature norm"


def test_intervals_in_words():
    said = {"level": 0.95, "method": "bootstrap", "draws": 1000, "clusters": "people", "seed": 3}
    assert interval_words(said) == "95 % intervals: bootstrap, 1,000 draws, clusters: people"
    assert interval_words(said, whole=True).endswith("clusters: people, seed: 3")
    assert interval_words({}) == ""
    assert interval_words({"missing": "no draws"}) == "No intervals: no draws"


def test_plain_text_is_one_line_that_steers_nothing():
    assert plain("Zürich 東京 a\nb\x1b[0m") == "Zürich 東京 a b\ufffd[0m"
