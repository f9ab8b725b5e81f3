"""Crops by five landmarks, beside plain references."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.align import TEMPLATE, LandmarkError, align, fit, warp

EXCHANGED = [1, 0, 2, 4, 3]  # left and right


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The (2, 3) transform of Umeyama's paper, by singular values."""
    about, onto = source.mean(axis=0), target.mean(axis=0)
    u, values, vt = np.linalg.svd((target - onto).T @ (source - about) / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    scale = (values * signs).sum() / ((source - about) ** 2).sum(axis=1).mean()
    rotation = scale * u @ np.diag(signs) @ vt
    return np.column_stack([rotation, onto - rotation @ about])


def bilinear(pixels: np.ndarray, inverse: np.ndarray, size: int) -> np.ndarray:
    """The warp, pixel by pixel."""
    height, width = pixels.shape[:2]
    out = np.zeros((size, size, 3), np.uint8)
    for row in range(size):
        for column in range(size):
            x, y = inverse @ [column, row, 1]
            left, above = math.floor(x), math.floor(y)
            value = np.zeros(3)
            for i, of_row in ((above, 1 - (y - above)), (above + 1, y - above)):
                for j, of_column in ((left, 1 - (x - left)), (left + 1, x - left)):
                    if 0 <= i < height and 0 <= j < width:
                        value += of_row * of_column * pixels[i, j]
            out[row, column] = np.floor(value + 0.5)
    return out


def a_face(rng: np.random.Generator, *, noise: float = 4.0) -> np.ndarray:
    """(5, 2) landmarks anywhere, of any size and turned by any angle."""
    turn = rng.uniform(-np.pi, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = TEMPLATE + rng.normal(0, noise, (5, 2))
    return points @ rotation.T * rng.uniform(0.2, 9) + rng.uniform(-500, 500, 2)


def test_the_transform_is_umeyamas():
    rng = np.random.default_rng(0)
    faces = np.stack([a_face(rng) for _ in range(200)])
    faces[::4] = faces[::4, EXCHANGED]  # that no rotation fits
    found = fit(faces)
    for face, matrix, error in zip(faces, *found[:2]):
        np.testing.assert_allclose(matrix, umeyama(face, TEMPLATE), rtol=1e-7, atol=1e-7)
        off = face @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE
        assert error == pytest.approx(np.sqrt((off**2).sum(axis=1).mean()))


def test_the_template_itself_is_left_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    np.testing.assert_array_equal(align(pixels, TEMPLATE), pixels)


@pytest.mark.parametrize("size", [56, 112, 224])
def test_a_crop_of_another_size_shows_the_same(size):
    """The landmarks lie at the template's places times the size, the error stays."""
    face = a_face(np.random.default_rng(1))
    found, usual = fit(face, size=size), fit(face)
    np.testing.assert_allclose(found.matrix, usual.matrix * size / 112)
    assert found.error == pytest.approx(float(usual.error))
    assert align(np.zeros((50, 70, 3), np.uint8), face, size=size).shape == (size, size, 3)


def test_by_how_much_a_face_is_turned():
    turn = np.radians(25)  # clockwise, as y goes down
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    assert fit(TEMPLATE @ rotation.T * 3 + 7).roll == pytest.approx(25)


def test_wrong_orders_fit_badly():
    assert fit(TEMPLATE[EXCHANGED]).error > 20
    assert fit(TEMPLATE[:, ::-1]).error > 20  # y before x


@pytest.mark.parametrize("shape", [(90, 140, 3), (40, 30, 3), (1, 1, 3)])
def test_the_warp_is_bilinear_with_black_outside(shape):
    """Within one grey level of the plain one, at every angle and scale."""
    rng = np.random.default_rng(sum(shape))
    for _ in range(6):
        pixels = rng.integers(0, 256, shape, np.uint8)
        angle, scale = rng.uniform(-np.pi, np.pi), np.exp(rng.uniform(-2, 2))
        a, b = scale * np.cos(angle), scale * np.sin(angle)
        x, y = rng.uniform(-20, 60, 2)
        inverse = np.array([[a, -b, x], [b, a, y]])
        found = warp(pixels, inverse, size=24)
        assert np.abs(found.astype(int) - bilinear(pixels, inverse, 24)).max() <= 1


def test_the_warp_is_opencvs():
    """Within one grey level, where OpenCV computes places exactly or the picture is smooth."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed; nothing needs it")
    rng = np.random.default_rng(0)
    for _ in range(50):
        pixels = cv2.GaussianBlur(rng.integers(0, 256, (200, 150, 3), np.uint8), (0, 0), 1.5)
        face = a_face(rng)
        expected = cv2.warpAffine(pixels, fit(face).matrix, (112, 112), borderValue=0.0)
        assert np.abs(align(pixels, face).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.full((5, 2), np.nan), "not finite"),
        (np.full((5, 2), 1e300), "far outside"),
        (np.full((5, 2), 3.0), "in one place"),
    ],
)
def test_what_is_no_face_is_refused(landmarks, message):
    with pytest.raises(LandmarkError, match=message):
        align(np.zeros((9, 9, 3), np.uint8), landmarks)


@settings(max_examples=60)
@given(st.lists(st.floats(-1e10, 1e10), min_size=10, max_size=10), st.integers(1, 40))
def test_any_landmarks_make_a_crop_or_an_error_in_words(numbers, side):
    pixels = np.full((side, 41 - side, 3), 200, np.uint8)
    try:
        crop = align(pixels, np.reshape(numbers, (5, 2)), size=32)
    except LandmarkError:
        return
    assert crop.shape == (32, 32, 3)
    assert crop.max() <= 200
