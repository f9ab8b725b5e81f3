"""Landmarks in another order are recognized by name."""

import numpy as np
import pytest

from pipeline.align import TEMPLATE
from pipeline.faces.landmark_order import warning_of_order


def faces(seed: int = 0, *, turned: float = 0.0) -> np.ndarray:
    """(200, 5, 2) landmarks as detectors find them: shifted, scaled, turned by some degrees."""
    rng = np.random.default_rng(seed)
    points = TEMPLATE + rng.normal(0, 2.5, (200, 5, 2))
    angle = np.radians(rng.normal(turned, 12, 200))
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1)
    around = points @ rotation.reshape(-1, 2, 2).transpose(0, 2, 1)
    return around * rng.uniform(0.5, 9, (200, 1, 1)) + rng.uniform(0, 900, (200, 1, 2))


def test_the_expected_order_is_no_cause_for_a_warning():
    assert warning_of_order(faces()) is None


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (lambda points: points[:, [1, 0, 2, 4, 3]], "left and right exchanged"),
        (lambda points: points[:, :, ::-1], "y before x"),
        (lambda points: points[:, [3, 4, 2, 0, 1]], "the mouth before the eyes"),
        (lambda points: points[:, [2, 0, 1, 3, 4]], "the nose first"),
        (lambda points: points[:, [0, 1, 3, 4, 2]], "the nose last"),
        (lambda points: points.transpose(0, 2, 1).reshape(-1, 5, 2), "all x before all y"),
    ],
)
def test_another_order_is_known_by_its_name(written, message):
    warning = warning_of_order(written(faces()))
    assert f"a list with {message}" in warning
    error, mended = (float(word) for word in warning.split() if word.replace(".", "").isdigit())
    assert error > 11 > 5 > mended


def test_photos_that_were_turned_after_their_landmarks():
    assert "turned by 9" in warning_of_order(faces(turned=92))
    assert "turned by -8" in warning_of_order(faces(turned=-88))
    assert "turned by" in warning_of_order(faces(turned=180))


def test_points_of_no_face():
    scattered = np.random.default_rng(0).uniform(0, 500, (100, 5, 2))
    assert "no order that is known here mends it" in warning_of_order(scattered)
    assert "in one place" in warning_of_order(np.full((3, 5, 2), 7.0))
