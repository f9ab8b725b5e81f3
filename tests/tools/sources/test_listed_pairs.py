"""Lists of pairs: as csv reads them, whatever the way; errors name the line."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from facestream import UserError
from tools.sources import pair_lists
from tools.sources.pair_lists import PlaceOf, read_pairs

NAMES = ["a/1.jpg", "b.jpg", "Zoë.jpg", "with, comma.jpg", "odd\udcff.jpg", " b.jpg"]
PLACES = {name: place for place, name in enumerate(NAMES)}
PLACE_OF = PlaceOf(PLACES.__getitem__, PLACES.__getitem__)


def found(path) -> list[tuple[int, int]]:
    return [pair for block in read_pairs(path, PLACE_OF) for pair in zip(*map(list, block))]


def by_csv(content: bytes) -> list[tuple[int, int]]:
    text = content.decode("utf-8-sig", errors="surrogateescape")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    return [(PLACES[row[0]], PLACES[row[1]]) for row in rows if row[0] != "first"]


@pytest.mark.parametrize(
    "content",
    [
        "a/1.jpg,b.jpg\nZoë.jpg, b.jpg\n",
        "a/1.jpg,b.jpg\nZoë.jpg,b.jpg",
        "first,second\r\na/1.jpg,b.jpg\r\n",
        "\ufefffirst,second,same\na/1.jpg,b.jpg,1\nb.jpg,b.jpg,0\n",
        "\ufeffa/1.jpg,b.jpg\n",
        'a/1.jpg,b.jpg\n"with, comma.jpg",b.jpg\nb.jpg,"Zoë.jpg"\n',
        "a/1.jpg,b.jpg,more\nb.jpg,Zoë.jpg\n",
        "a/1.jpg,b.jpg\n\n\nb.jpg,Zoë.jpg\n",
        "a/1.jpg,b.jpg,x,y\n\nb.jpg,Zoë.jpg\n",
        "odd\udcff.jpg,b.jpg\n",
    ],
)
@pytest.mark.parametrize("at_a_time", [1, 1 << 22])
def test_lines_are_read_as_csv_reads_them(content, at_a_time, tmp_path, monkeypatch):
    """Also where blocks of the file begin with any of them."""
    monkeypatch.setattr(pair_lists, "_BYTES", at_a_time)
    path = tmp_path / "pairs.csv"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert found(path) == by_csv(path.read_bytes())


def test_many_lines_come_in_blocks_and_none_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(pair_lists, "_BYTES", 100)
    wanted = np.random.default_rng(0).integers(0, 3, (500, 2))
    path = tmp_path / "pairs.csv"
    path.write_text("".join(f"{NAMES[a]},{NAMES[b]}\n" for a, b in wanted))
    blocks = list(read_pairs(path, PLACE_OF))
    assert len(blocks) > 10
    assert np.array_equal(np.concatenate([np.stack(block, 1) for block in blocks]), wanted)


def test_each_side_has_its_own_names(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("x,b.jpg\n")
    place_of = PlaceOf({"x": 7}.__getitem__, PLACES.__getitem__)
    ((first, second),) = read_pairs(path, place_of)
    assert (first.tolist(), second.tolist()) == ([7], [1])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has no pairs"),
        (b"a,b\n", "has no pairs"),
        (b"a/1.jpg,b.jpg\nalone\n", r"line 2: found 'alone', expected two names"),
        (b"a/1.jpg,b.jpg\n" * 9 + b"b.jpg,who\n", r"line 10: 'who' is no name"),
        (b'b.jpg,b.jpg\n"b.jpg,b.jpg', r"line 2: .* is no name|line 2: found"),
        (b"\x00\xff\x00", "line 1: "),
    ],
)
@pytest.mark.parametrize("at_a_time", [1, 1 << 22])
def test_what_is_no_pair_is_named_with_its_line(
    content, complaint, at_a_time, tmp_path, monkeypatch
):
    monkeypatch.setattr(pair_lists, "_BYTES", at_a_time)
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        found(path)
