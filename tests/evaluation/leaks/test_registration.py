"""Likeness: a photograph's copies are above the threshold, other photographs below."""

import numpy as np
import pytest

from evaluation.leaks.registration import SAME_PHOTOGRAPH, likeness
from evaluation.leaks.thumbnails import thumbnail
from synthetic import encode_jpeg, render
from tests.evaluation.leaks.planted import COPIES, decode

FACE = encode_jpeg(render(5, 1))


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_the_same_photograph(copy):
    other = thumbnail(COPIES[copy](decode(FACE)))
    assert likeness(thumbnail(FACE), other) >= SAME_PHOTOGRAPH


@pytest.mark.parametrize(("person", "shot"), [(5, 2), (5, 3), (6, 1), (7, 0)])
def test_another_photograph_is_not(person, shot):
    other = thumbnail(encode_jpeg(render(person, shot)))
    assert likeness(thumbnail(FACE), other) < SAME_PHOTOGRAPH - 0.1


def test_a_picture_without_detail_is_like_nothing():
    flat = np.full_like(thumbnail(FACE), 90)
    assert abs(likeness(flat, thumbnail(FACE))) < 0.01
    assert abs(likeness(thumbnail(FACE), flat)) < 0.01
