"""The expected false rate: above the real one, and not by much, whatever the tail is like."""

import numpy as np
import pytest

from evaluation.people.strangers import Strangers

COMPARED, FACES = 500, 4000


@pytest.mark.parametrize("tail", ["normal", "exponential", "unequal faces"])
def test_the_expected_rate_is_on_the_safe_side_of_the_real_one(tail):
    random = np.random.default_rng(0)
    if tail == "exponential":
        cosines = 0.05 * random.exponential(size=(FACES, COMPARED))
    else:
        cosines = 0.1 * random.standard_normal((FACES, COMPARED))
    if tail == "unequal faces":
        cosines += 0.1 * random.standard_normal((FACES, 1))
    nearest = -np.sort(-cosines, axis=1)[:, :3]
    strangers = Strangers.of(nearest[: FACES // 4])
    for rate in (0.02, 0.005):
        threshold = strangers.threshold(rate)
        assert strangers.expected(threshold) == pytest.approx(rate, rel=0.01)
        real = (nearest[FACES // 4 :, 0] > threshold).mean()
        assert rate / 12 < real < 1.6 * rate


def test_people_that_are_there_twice_do_not_hide_themselves():
    """The nearest of a fifth of all faces is the same person: the threshold stays below them."""
    random = np.random.default_rng(1)
    nearest = -np.sort(-0.1 * random.standard_normal((FACES, COMPARED)), axis=1)[:, :3]
    alone = Strangers.of(nearest).threshold(1e-3)
    twice = nearest.copy()
    twice[: FACES // 5, 1:] = nearest[: FACES // 5, :2]
    twice[: FACES // 5, 0] = 0.8
    found = Strangers.of(twice).threshold(1e-3)
    assert alone <= found < 0.75


def test_faces_whose_nearest_are_equally_near_give_a_threshold_all_the_same():
    assert Strangers.of(np.full((30, 3), 0.5)).threshold(1e-3) == pytest.approx(0.5, abs=1e-3)
