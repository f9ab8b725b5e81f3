"""Twins: one person under two or three labels is found, nobody else is."""

import numpy as np
import pytest

from evaluation.people.centers import find_centers
from evaluation.people.twins import find_twins
from tests.evaluation.people.crowd import crowd


def test_people_under_several_labels_are_found_and_grouped():
    rows, labels = crowd(100, 9, noise=0.5)
    parted = labels.copy()
    for person, label in ((3, 100), (50, 101)):
        parted[np.flatnonzero(labels == person)[:4]] = label
    parted[np.flatnonzero(labels == 50)[4:6]] = 103  # a third one; label 102 has no image
    found = find_twins(find_centers(rows, parted, num_classes=104).directions)
    assert found.groups == [[3, 100], [50, 101, 103]]
    assert {tuple(pair) for pair in found.pairs.tolist()} == {
        (3, 100),
        (50, 101),
        (50, 103),
        (101, 103),
    }
    assert (np.diff(found.cosines) <= 0).all()
    assert found.cosines.min() > found.threshold
    assert found.expected_false == pytest.approx(103 * 1e-3 / 2, rel=0.01)


def test_nobody_is_made_one_where_all_differ():
    rows, labels = crowd(150, 6, noise=0.8)
    found = find_twins(find_centers(rows, labels, num_classes=150).directions)
    assert found.groups == []
    assert found.pairs.shape == (0, 2)


def test_too_few_people_are_not_judged():
    rows, labels = crowd(6, 4)
    assert find_twins(find_centers(rows, labels, num_classes=6).directions).groups == []
