"""Wrong labels: found with the precision and recall that are announced, and none where none are."""

import numpy as np
import pytest

from evaluation.people.centers import find_centers, nearest_three
from evaluation.people.mislabeled import Mislabeled, find_mislabeled
from tests.evaluation.people.crowd import crowd, swapped


def look(rows: np.ndarray, labels: np.ndarray) -> Mislabeled:
    centers = find_centers(rows, labels, num_classes=int(labels.max()) + 1)
    others = nearest_three(rows, centers.directions, besides=labels)
    return find_mislabeled(rows, labels, centers, others)


@pytest.mark.parametrize(("share", "noise"), [(0.02, 1.5), (0.1, 1.5), (0.1, 2.2), (0.3, 2.0)])
def test_precision_and_recall_are_as_announced(share, noise):
    rows, right = crowd(120, 12, noise=noise)
    labels = swapped(right, share)
    wrong = labels != right
    found = look(rows, labels)
    hits = wrong[found.suspects].sum()
    precision, recall = hits / len(found.suspects), hits / wrong.sum()
    assert found.share == pytest.approx(wrong.mean(), rel=0.35)
    assert found.precision == pytest.approx(precision, abs=0.12)
    assert found.recall == pytest.approx(recall, abs=0.12)
    assert min(precision, recall) > 0.7


def test_the_worst_come_first():
    rows, right = crowd(60, 10)
    found = look(rows, swapped(right, 0.1))
    assert (np.diff(found.margins[found.suspects]) >= 0).all()
    assert found.margins[found.suspects].max() <= found.threshold


@pytest.mark.parametrize("noise", [0.5, 1.5, 4.0])
def test_hardly_any_is_found_where_all_are_right(noise):
    rows, labels = crowd(80, 10, noise=noise)
    assert len(look(rows, labels).suspects) < 0.01 * len(labels)


def test_a_few_images_are_not_judged():
    rows, labels = crowd(5, 4)
    found = look(rows, labels)
    assert len(found.suspects) == 0
    assert found.share == 0
