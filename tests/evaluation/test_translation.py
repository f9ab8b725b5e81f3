"""Translators: what they restore, against plain solutions, and how one of them is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.protocols.protocol import unit_rows
from evaluation.translation import RIDGES, TranslationError, Translator, affine, fit, rotation

DIM = 24


def faces(
    people: int, each: int, *, dim: int = DIM, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unit length around a center for each person, and whose they are."""
    random = np.random.default_rng(seed)
    who = np.arange(people).repeat(each)
    centers = random.standard_normal((people, dim))
    return unit_rows(centers[who] + 0.4 * random.standard_normal((len(who), dim))), who


def turned(dim: int = DIM, seed: int = 1) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def test_a_turned_space_is_turned_back():
    old, who = faces(40, 5)
    new = (old @ turned() * 3).astype(np.float32)  # of any length
    found = fit(old, new, who)
    assert found.translator.kind == "rotation"
    np.testing.assert_allclose(found.translator(old), unit_rows(new), atol=1e-5)
    assert (found.images, found.people, found.held_out) == (200, 40, 8)


def test_what_is_more_than_turned_is_translated_by_an_affine_map():
    """Values of the old space are stretched and moved: angles are others in the new one."""
    old, who = faces(200, 5)
    stretch = np.geomspace(0.2, 5, DIM)
    new = unit_rows(old * stretch @ turned() + 0.3)
    found = fit(old, new, who)
    assert found.translator.kind.startswith("affine")
    (turning,) = (trial for trial in found.trials if trial.kind == "rotation")
    assert found.trials[0].cosine > turning.cosine + 0.01
    assert found.trials[0].tar >= turning.tar


def test_no_rotation_brings_rows_nearer():
    """The best one's products with the new rows add up to the nuclear norm, and no other's do."""
    old, _ = faces(50, 4)
    new = unit_rows(old @ turned() + 0.2 * faces(50, 4, seed=3)[0])
    matrix = rotation(old, new).matrix
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(DIM), atol=1e-5)
    bound = np.linalg.svd(old.astype(np.float64).T @ new, compute_uv=False).sum()
    assert (old @ matrix * new).sum() == pytest.approx(bound, rel=1e-6)
    assert (old @ turned() * new).sum() < bound - 0.01


@pytest.mark.parametrize(("wide", "narrow"), [(24, 10), (10, 24)])
def test_spaces_of_two_sizes_have_orthonormal_rows_or_columns(wide, narrow):
    old, new = faces(50, 4, dim=wide)[0], faces(50, 4, dim=narrow, seed=2)[0]
    matrix = rotation(old, new).matrix
    product = matrix.T @ matrix if wide > narrow else matrix @ matrix.T
    np.testing.assert_allclose(product, np.eye(min(wide, narrow)), atol=1e-5)


@pytest.mark.parametrize("ridge", RIDGES)
def test_the_affine_map_is_that_of_plain_least_squares(ridge):
    """Of rows with a column of ones, and rows that hold the matrix small but not the offset."""
    old, new = faces(50, 4)[0], faces(50, 4, dim=10, seed=2)[0]
    centered = old - old.mean(axis=0)
    weight = ridge * np.square(centered).sum() / DIM
    rows = np.r_[np.c_[old, np.ones(len(old))], np.sqrt(weight) * np.eye(DIM, DIM + 1)]
    solution = np.linalg.lstsq(rows, np.r_[new, np.zeros((DIM, 10))], rcond=None)[0]
    found = affine(old, new, ridge)
    np.testing.assert_allclose(found.matrix, solution[:-1], atol=1e-4)
    np.testing.assert_allclose(found.offset, solution[-1], atol=1e-5)


def test_the_kind_is_chosen_on_people_who_are_held_out():
    """With hardly more images than values an affine map fits all of them, and nobody else."""
    old, who = faces(15, 2)
    new = unit_rows(old @ turned() + 0.5 * faces(15, 2, seed=5)[0])
    found = fit(old, new, who)
    assert found.trials == sorted(found.trials, key=lambda one: (-(one.tar or 0), -one.cosine))
    fitted = affine(old, new, RIDGES[0])
    assert np.einsum("nd,nd->n", fitted(old), new).mean() > 0.97
    (tried,) = (trial for trial in found.trials if trial.kind == fitted.kind)
    assert tried.cosine < 0.9


def test_the_same_seed_makes_the_same_translator():
    old, who = faces(20, 3)
    new = faces(20, 3, seed=9)[0]
    one, other = (fit(old, new, who, seed=4) for _ in range(2))
    assert np.array_equal(one.translator.matrix, other.translator.matrix)
    assert one.trials == other.trials


def test_people_of_one_image_each_show_no_rate_and_the_cosine_chooses():
    old, who = faces(60, 1)
    found = fit(old, (old @ turned()).astype(np.float32), who)
    assert found.translator.kind == "rotation"
    assert {trial.tar for trial in found.trials} == {None}


def test_rows_of_zeros_stay_and_other_sizes_are_refused():
    translator = Translator("x", np.eye(DIM, dtype=np.float32), np.ones(DIM, np.float32))
    rows = np.zeros((3, DIM), np.float16)
    rows[1] = 1
    assert np.linalg.norm(translator(rows), axis=1) == pytest.approx([0, 1, 0])
    with pytest.raises(TranslationError, match="takes embeddings of 24 values, found 8"):
        translator(np.ones((2, 8)))


def test_too_few_people_are_refused():
    old, who = faces(9, 4)
    with pytest.raises(TranslationError, match="found 9 people to fit a translator on, expected"):
        fit(old, old, who)
