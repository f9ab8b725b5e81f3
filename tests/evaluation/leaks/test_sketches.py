"""Sketches: those of copies are near, those of other pictures far; few pictures are enough."""

import numpy as np

from evaluation.leaks.sketches import DIMS, WORTH_A_LOOK, Sketcher
from evaluation.leaks.thumbnails import thumbnail
from synthetic import encode_jpeg, render
from tests.evaluation.leaks.planted import COPIES

FACES = [render(k, 0) for k in range(120)]
PICTURES = np.stack([thumbnail(encode_jpeg(face)) for face in FACES])


def test_copies_are_worth_a_look_and_few_others_are():
    sketcher = Sketcher.learned_from(PICTURES)
    variants = sketcher.variants(PICTURES)
    assert variants.shape[1:] == (120, 120 // 8)
    np.testing.assert_allclose(np.linalg.norm(variants, axis=2), 1, rtol=1e-5)
    for copy in COPIES.values():
        copies = sketcher(np.stack([thumbnail(copy(face)) for face in FACES[:40]]))
        cosines = np.einsum("vnd,nd->vn", variants[:, :40], copies).max(0)
        assert cosines.min() >= WORTH_A_LOOK
    others = np.einsum("vnd,md->vnm", variants, sketcher(PICTURES)).max(0)
    np.fill_diagonal(others, 0)
    assert (others >= WORTH_A_LOOK).mean() < 0.05


def test_sketches_are_the_same_from_call_to_call_and_grow_with_the_pictures():
    first, second = (Sketcher.learned_from(PICTURES)(PICTURES[:5]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert Sketcher.learned_from(PICTURES[:3])(PICTURES[:3]).shape == (3, 2)
    many = np.repeat(PICTURES, 5, axis=0)
    assert Sketcher.learned_from(many)(many).shape == (600, DIMS)
