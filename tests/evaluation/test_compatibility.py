"""Old and new embeddings on the same pairs: which meet which, with intervals of the differences."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.compatibility import CROSSED, NEW, OLD, TRANSLATED, combine, judge_together
from evaluation.features import Features
from evaluation.images import Images
from evaluation.protocols.pairs import Pairs
from evaluation.protocols.protocol import Asked, unit_rows
from evaluation.translation import Translator
from tests.evaluation.test_translation import DIM, faces, turned

PEOPLE, EACH = 60, 6


def features(rows: np.ndarray, damaged: tuple[int, ...] = ()) -> Features:
    return Features(rows, np.ones(len(rows), np.float32), dict.fromkeys(damaged, "is damaged"))


@pytest.fixture
def rows() -> np.ndarray:
    return faces(PEOPLE, EACH)[0]


@pytest.fixture
def test_set(rows) -> Pairs:
    """900 pairs of one person, and 3,600 of two."""
    random, count = np.random.default_rng(0), PEOPLE * EACH
    genuine = [
        (EACH * person + a, EACH * person + b)
        for person in range(PEOPLE)
        for a in range(EACH)
        for b in range(a)
    ]
    first = random.integers(0, count, 3600)
    second = (first + EACH * random.integers(1, PEOPLE, 3600)) % count
    one, other = np.array(genuine).T
    names = [f"image {place}" for place in range(count)]
    same = np.arange(len(genuine) + 3600) < len(genuine)
    order = random.permutation(len(same))  # each fold has both kinds
    return Pairs(
        "mine",
        Images(names, lambda place: b"", lambda places: (np.empty(0), {}), 112, ""),
        np.r_[one, first][order],
        np.r_[other, second][order],
        same[order],
        people=[str(place // EACH) for place in range(count)],
    )


def rotation() -> Translator:
    return Translator("rotation", turned().astype(np.float32), np.zeros(DIM, np.float32))


@pytest.mark.slow
def test_a_turned_space_costs_nothing_once_translated_and_all_before(rows, test_set):
    found = combine(features(rows), features(rows @ turned().astype(np.float32)), rotation())
    assert list(found) == [TRANSLATED, CROSSED, NEW, OLD]
    results, comparisons = judge_together(test_set, found, Asked(draws=60))
    by_name = {result.model: result for result in results}
    tar = {name: result.figures["tar@far=0.001"] for name, result in by_name.items()}
    assert tar[TRANSLATED].value == pytest.approx(tar[NEW].value, abs=1e-3)
    assert tar[OLD].value == pytest.approx(tar[NEW].value, abs=1e-3)
    assert tar[CROSSED].value < 0.05 < 0.3 < tar[NEW].value
    for one in tar.values():
        assert one.low <= one.value <= one.high
    assert by_name[NEW].interval["clusters"] == "people"
    assert {result.headline for result in results} == {"tar@far=0.001"}
    differences = {
        (one.first, one.second): one.difference
        for one in comparisons
        if one.figure == "tar@far=0.001"
    }
    cost = differences[TRANSLATED, NEW]
    assert abs(cost.value) < 1e-3
    assert cost.high - cost.low < 0.02  # far less than that of either
    assert differences[CROSSED, NEW].high < -0.2
    assert (
        "the old model, translated" in by_name[TRANSLATED].settings["second images are embedded by"]
    )


def test_scores_are_of_the_new_first_image_and_the_old_second_one(rows, test_set):
    """Against a plain loop over the pairs."""
    new = faces(PEOPLE, EACH, seed=7)[0] + rows
    crossed = combine(features(rows), features(new), None)[CROSSED]
    (result,), _ = judge_together(test_set, {CROSSED: crossed}, Asked(draws=0))
    expected = [
        float(unit_rows(new[[one]])[0].astype(np.float64) @ rows[other])
        for one, other in zip(test_set.first, test_set.second)
    ]
    hardest = max(score for score, same in zip(expected, test_set.same) if not same)
    assert result.hardest["false accepts"][0].score == pytest.approx(hardest, abs=1e-6)
    genuine = [score for score, same in zip(expected, test_set.same) if same]
    limit = sorted((s for s, same in zip(expected, test_set.same) if not same), reverse=True)[36]
    tar = np.mean([score > limit for score in genuine])
    assert result.figures["tar@far=0.01"].value == pytest.approx(tar, abs=1e-9)


def test_what_one_model_cannot_embed_is_left_out_of_all_pairs(rows, test_set):
    found = combine(features(rows, (3,)), features(rows, (8,)), None)
    results, _ = judge_together(test_set, found, Asked(draws=0))
    counts = [result.counts for result in results]
    assert counts == [counts[0]] * 3
    assert counts[0]["damaged"] == 2
    gone = np.isin(test_set.first, [3, 8]) | np.isin(test_set.second, [3, 8])
    assert counts[0]["pairs left out"] == gone.sum()


def test_spaces_of_two_sizes_meet_only_when_translated(rows):
    wide = features(np.c_[rows, rows])
    assert list(combine(features(rows), wide, None)) == [NEW, OLD]
    translator = Translator("x", np.zeros((DIM, 2 * DIM), np.float32), np.ones(2 * DIM, np.float32))
    found = combine(features(rows), wide, translator)
    assert list(found) == [TRANSLATED, NEW, OLD]
    assert found[TRANSLATED].against.shape == (len(rows), 2 * DIM)
