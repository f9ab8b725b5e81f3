"""Short texts in two arrays come out as they went in."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.containers import texts as module
from pipeline.containers.texts import Texts

WORDS = ["anna/1.jpg", "", "zoë", "caf\udce9"]  # the last is no UTF-8 on the disk


def test_what_went_in_comes_out():
    texts = Texts.of(WORDS)
    assert list(texts) == WORDS
    assert texts[-1] == WORDS[-1]
    assert texts[1:3] == WORDS[1:3]
    assert texts.raw(3) == b"caf\xe9"
    with pytest.raises(IndexError):
        texts[4]


def test_pieces_are_joined_in_turn():
    assert list(Texts.joined([Texts.of(WORDS[:2]), Texts.of([]), Texts.of(WORDS[2:])])) == WORDS
    assert list(Texts.joined([])) == []


def test_arrays_of_a_file_are_the_same_texts():
    texts = Texts.of(WORDS)
    again = Texts(np.frombuffer(texts.ends.tobytes(), np.int64), texts.content.copy())
    assert list(again) == WORDS


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_some_are_taken_in_any_order(monkeypatch, piece):
    monkeypatch.setattr(module, "_PIECE", piece)
    texts = Texts.of(iter(WORDS))
    assert list(texts) == WORDS
    for places in ([], [3, 0], [1, 1, 2], [2, 0, 3, 1], [0, 1, 2, 3]):
        assert list(texts.take(np.array(places, np.int64))) == [WORDS[at] for at in places]


def test_one_that_is_there_twice_is_found():
    assert Texts.of(WORDS).find_twice() is None
    assert Texts.of([*WORDS, "", "zo"]).find_twice() == ""
    assert Texts.of([]).find_twice() is None
