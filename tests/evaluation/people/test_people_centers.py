"""Centers: robust to strangers, equal to plain ones where there are none, blocks without a seam."""

import numpy as np
import pytest

from evaluation.people import centers as module
from evaluation.people.centers import dominant_centers, find_centers, nearest_three
from evaluation.protocols.protocol import unit_rows
from tests.evaluation.people.crowd import DIM, crowd


def test_own_is_the_cosine_with_the_rest_of_the_identity():
    rows, labels = crowd(6, 2)
    found = find_centers(rows, labels, num_classes=6)
    units = unit_rows(rows)
    pairs = np.einsum("nd,nd->n", units[0::2], units[1::2])
    np.testing.assert_allclose(found.own, np.repeat(pairs, 2), atol=1e-5)


def test_a_stranger_hardly_moves_a_center():
    rows, labels = crowd(5, 8, noise=0.3)
    whole = find_centers(rows, labels, num_classes=5)
    spoilt = rows.copy()
    spoilt[[0, 1]] = rows[[-1, -2]]  # two of eight
    found = find_centers(spoilt, labels, num_classes=5)
    plain = unit_rows(unit_rows(spoilt[:8]).sum(0, keepdims=True))[0]
    robust = found.directions[0] @ whole.directions[0]
    assert robust > plain @ whole.directions[0]
    assert robust > 0.97
    assert found.own[:2].max() < 0.4 < 0.8 < found.own[2:].min()


def test_blocks_have_no_seam(monkeypatch):
    rows, labels = crowd(7, 5)
    whole = find_centers(rows, labels, num_classes=7)
    nearest = nearest_three(rows, whole.directions, besides=labels)
    monkeypatch.setattr(module, "_BLOCK", 4)
    monkeypatch.setattr(module.blocks, "__kwdefaults__", {"size": 4})
    found = find_centers(rows, labels, num_classes=7)
    np.testing.assert_allclose(found.directions, whole.directions, atol=1e-6)
    np.testing.assert_allclose(found.own, whole.own, atol=1e-6)
    again = nearest_three(rows, whole.directions, besides=labels)
    np.testing.assert_array_equal(again.which, nearest.which)


def test_the_nearest_are_those_of_a_full_sort_besides_ones_own_and_nobody():
    rows, labels = crowd(9, 3)
    directions = find_centers(rows, labels, num_classes=10).directions  # the last is nobody
    found = nearest_three(rows, directions, besides=labels)
    cosines = unit_rows(rows) @ directions.T
    cosines[:, 9] = -2
    cosines[np.arange(len(rows)), labels] = -2
    np.testing.assert_array_equal(found.which, np.argsort(-cosines, axis=1)[:, :3])
    np.testing.assert_allclose(found.cosine, -np.sort(-cosines, axis=1)[:, :3], atol=1e-6)


def test_one_that_is_alone_or_damaged_is_not_judged():
    rows, labels = crowd(4, 3)
    labels[2] = 4  # alone
    rows[3] = 0  # damaged
    found = find_centers(rows, labels, num_classes=6)
    assert np.isnan(found.own[[2, 3]]).all()
    assert np.isfinite(found.own[[0, 1, 4, 5]]).all()
    np.testing.assert_allclose(found.directions[4], unit_rows(rows[2:3])[0], atol=1e-6)
    assert not found.directions[5].any()


def test_the_dominant_sub_center_is_that_of_most_images():
    rows, labels = crowd(4, 6, noise=0.2)
    rows[0] = 0  # damaged: it has no vote
    own = find_centers(rows, labels, num_classes=4).directions
    random = np.random.default_rng(3).standard_normal((4, 2, DIM)).astype(np.float32)
    subcenters = np.stack([random[:, 0], 3 * own, random[:, 1]], axis=1)
    found = dominant_centers(rows, labels, subcenters)
    np.testing.assert_allclose(found.directions, own, atol=1e-5)
    assert np.isnan(found.own[0])
    assert found.own[1] == pytest.approx(float(unit_rows(rows[1:2])[0] @ own[0]), abs=1e-5)


def test_a_label_without_an_image_has_no_dominant_sub_center():
    rows, labels = crowd(4, 3)
    found = dominant_centers(rows, labels, np.ones((5, 2, DIM), np.float32))
    assert not found.directions[4].any()
