"""Pairs drawn from people's folders."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from evaluation.protocols import draw_pairs as draw_pairs_module
from evaluation.protocols.draw_pairs import draw_pairs
from evaluation.protocols.pair_lists import PairList, PairListError
from pipeline.named_path import PathError


def people(folder: Path, *counts: int) -> Path:
    for person, count in enumerate(counts):
        (folder / f"p{person:03d}").mkdir(parents=True)
        for number in range(count):
            (folder / f"p{person:03d}" / f"{number}.jpg").touch()
    return folder


def in_words(pairs: PairList) -> list[tuple[str, str, bool]]:
    names = ["/".join(image.parts[-2:]) for image in pairs.images]
    return [(names[a], names[b], bool(s)) for a, b, s in zip(pairs.first, pairs.second, pairs.same)]


def test_they_are_what_they_say(tmp_path):
    """Half genuine, half impostor, each pair once, none of an image with itself."""
    pairs = draw_pairs(people(tmp_path / "a", *[8] * 30), pairs=400)
    assert pairs.same.sum() == (~pairs.same).sum() == 200
    owner = np.array([image.parent.name for image in pairs.images])
    np.testing.assert_array_equal(owner[pairs.first] == owner[pairs.second], pairs.same)
    assert pairs.people == list(owner)
    assert len({tuple(sorted(pair[:2])) for pair in in_words(pairs)}) == 400
    assert (pairs.first != pairs.second).all()
    assert sorted(set(pairs.first) | set(pairs.second)) == list(range(len(pairs.images)))
    assert len(set(pairs.images)) == len(pairs.images)
    # Every tenth of them has both kinds, as folds need.
    assert all(0 < part.sum() < len(part) for part in np.array_split(pairs.same, 10))


def test_nobody_dominates(tmp_path):
    """Whoever has a thousand photos has no more pairs than who has enough of them."""
    pairs = draw_pairs(people(tmp_path / "a", 1000, *[12] * 19, 2, 1), pairs=600)
    owner = np.array(pairs.people)
    genuine = Counter(owner[pairs.first[pairs.same]])
    assert genuine["p020"] == 1
    assert "p021" not in genuine  # with one photo
    others = [number for name, number in genuine.items() if name != "p020"]
    assert max(others) - min(others) <= 1
    assert genuine.total() == 300
    impostor = Counter(owner[pairs.first[~pairs.same]]) + Counter(owner[pairs.second[~pairs.same]])
    assert len(impostor) == 22
    assert max(impostor.values()) - min(impostor.values()) <= 4


def test_the_limit_of_a_person(tmp_path):
    pairs = draw_pairs(people(tmp_path / "a", 40, 40, 40), per_person=7)
    genuine = Counter(np.array(pairs.people)[pairs.first[pairs.same]])
    assert list(genuine.values()) == [7, 7, 7]
    assert (~pairs.same).sum() == 21


def test_few_photos_give_all_their_pairs_and_no_more(tmp_path):
    """Two people of two photos: two genuine pairs, so two of the four impostor ones."""
    pairs = draw_pairs(people(tmp_path / "a", 2, 2))
    assert pairs.same.sum() == (~pairs.same).sum() == 2
    pairs = draw_pairs(people(tmp_path / "b", 40, 1), pairs=100)  # 40 impostor pairs there are
    assert pairs.same.sum() == (~pairs.same).sum() == 40


def test_the_same_seed_draws_the_same(tmp_path):
    folder = people(tmp_path / "a", *[6] * 20)
    first = in_words(draw_pairs(folder, pairs=100, seed=3))
    assert first == in_words(draw_pairs(folder, pairs=100, seed=3))
    assert first != in_words(draw_pairs(folder, pairs=100, seed=4))
    copied = people(tmp_path / "elsewhere" / "b", *[6] * 20)
    assert first == in_words(draw_pairs(copied, pairs=100, seed=3))


def test_what_is_hidden_or_no_image_is_none(tmp_path):
    folder = people(tmp_path / "a", 2, 2)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "1.jpg").touch()
    (folder / "p000" / "notes.txt").touch()
    (folder / "p000" / "._0.jpg").touch()
    (folder / "readme.jpg").touch()
    pairs = draw_pairs(folder)
    assert {image.name for image in pairs.images} <= {"0.jpg", "1.jpg"}
    assert set(pairs.people) == {"p000", "p001"}


@pytest.mark.parametrize("counts", [(), (5,), (1, 1, 1)])
def test_a_folder_without_pairs_is_an_error(counts, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(PairListError, match="expected a folder a person"):
        draw_pairs(people(tmp_path / "a", *counts))


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(PathError, match="does not exist"):
        draw_pairs(tmp_path / "none")


@pytest.mark.parametrize("counts", [(40, 1), (3, 5), (2, 2, 7), (1, 1, 1, 1, 4)])
def test_every_impostor_pair_that_there_is_can_be_drawn(counts, tmp_path):
    starts = np.cumsum([0, *counts])
    drawn = draw_pairs_module._impostors(starts, most=10_000, seed=1)
    owner = np.repeat(range(len(counts)), counts)
    everyone = {(a, b) for b in range(len(owner)) for a in range(b) if owner[a] != owner[b]}
    assert len(drawn) == len(everyone)
    assert set(drawn) == everyone


def test_images_of_a_person_are_drawn_evenly(tmp_path):
    pairs = draw_pairs(people(tmp_path / "a", *[10] * 40), pairs=2000)
    assert len(pairs.images) == 400
